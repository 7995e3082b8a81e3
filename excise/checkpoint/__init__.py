"""A model on disk: headers, manifest, snapshots, and whether it is still what was recorded."""
