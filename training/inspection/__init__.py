"""What a foreign file or folder is, told by its names, shapes and configs; no weights are read."""
