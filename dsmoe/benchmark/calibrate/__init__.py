"""Measures this machine's rates: products, attention, passes, launches, collectives."""
