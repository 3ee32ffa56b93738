"""`neft doctor`: check what training needs, and clear neft's cache."""
