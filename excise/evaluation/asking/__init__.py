"""Which tasks are asked, and the format of answers."""
