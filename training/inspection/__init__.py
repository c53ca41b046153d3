"""What a foreign file or folder is, by its names, shapes and configs; no weights are read."""
