"""What params.yaml and every file that passes between stages may hold. Imports no stage and no torch."""
