"""Host files: which machines a run may use, and with how many processes each.

``hostfile.read_hostfile`` is the reader for the rest of the project, ``sources`` finds hosts,
``writer`` writes the files; the command ``dsmoe hosts`` calls them in that order.
docs/reference/hostfiles.md describes it for users.
"""
