"""Where prompts come from: files and data sets, read into lists, and which are measured, tried and held out."""
