"""The workflow around commits: git, pull requests, past models, releases, experiments."""
