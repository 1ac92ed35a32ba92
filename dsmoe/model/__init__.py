"""What one does with a model: train and keep it, evaluate it, generate text, export it."""
