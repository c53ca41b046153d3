"""Files that others wrote, read lazily."""
