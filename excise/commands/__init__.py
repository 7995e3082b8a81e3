"""The commands of `python -m excise`: each is a function whose docstring is its help, and which imports only what it
needs."""
