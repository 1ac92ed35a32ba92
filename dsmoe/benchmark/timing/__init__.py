"""The fast path against the reference; where the time of a step goes."""
