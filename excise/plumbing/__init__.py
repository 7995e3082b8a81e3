"""What everything stands on: errors, files, digests, memory, device, progress, the Hub's client."""
