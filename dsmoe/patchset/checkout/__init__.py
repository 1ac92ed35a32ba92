"""One DeepSpeed checkout: what it is, what the series makes of it, how it gets there."""
