"""What every schema is made of, and how YAML and JSON are read."""
