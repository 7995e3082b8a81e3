"""What readers see: words, templates, the page, pictures."""
