"""Several models beside each other: how well they answer, in how much time and memory."""
