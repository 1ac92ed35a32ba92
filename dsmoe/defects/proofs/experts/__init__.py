"""Proofs: a file a defect, run in another Python by dsmoe/defects/there.py."""
