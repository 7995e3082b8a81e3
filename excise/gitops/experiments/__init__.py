"""Many edits from one file: queued, run here or on a cluster, and put into tables."""
