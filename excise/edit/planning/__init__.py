"""From rules to the edit of each tensor: layout, plan, projectors, and their arithmetic."""
