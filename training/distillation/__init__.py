"""A student learns from a teacher: its logits, hidden states and audio embeddings, or the answers that it writes."""
