"""GitOps: what happens to a run between a commit and a pull request."""
