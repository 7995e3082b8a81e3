"""What other packages do not offer as their interface, and is used all the same: one module for each package."""
