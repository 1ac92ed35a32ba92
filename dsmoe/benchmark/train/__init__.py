"""What a training process does, and what it measures."""
