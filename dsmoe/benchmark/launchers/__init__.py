"""How a run's processes are started, one launcher a file, behind one interface (interface.py)."""
