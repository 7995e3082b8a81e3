"""From rules to what is done to each tensor: layout, plan, projectors, and their arithmetic."""
