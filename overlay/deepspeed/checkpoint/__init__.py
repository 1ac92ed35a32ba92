"""What this project adds to DeepSpeed's checkpoints, a concern a module."""
