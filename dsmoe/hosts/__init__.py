"""Host files: which machines a run may use, and with how many processes each.

``hostfile.read_hostfile`` is the reader for the rest of the project; ``cli.main`` is the command
``get_hostfiles.py``. docs/reference/hostfiles.md describes both for users.
"""
