"""Keepers: one for each training process, started by a launcher and led by the command."""
