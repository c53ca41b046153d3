"""What a bundle takes on this machine: time, memory, and how sure that is. `run.measure` is the path."""
