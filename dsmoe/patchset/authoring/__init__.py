"""Changing the series: export, lint, and carrying it over to another base."""
