"""What makes the model fast: one backend a file; policy.py says which is used."""
