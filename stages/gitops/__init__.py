"""What two commits of a project have in common, and what not."""
