"""New checkpoints: from published files, around pretrained parts, or from nothing."""
