"""How well a checkpoint or a bundle answers."""
