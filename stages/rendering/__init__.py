"""Showing what was found: templates and tables, made from schemas alone."""
