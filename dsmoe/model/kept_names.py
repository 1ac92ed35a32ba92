"""What the command and the processes of ``dsmoe train`` agree on."""

from __future__ import annotations

from pathlib import Path

#: A file of this name in the run folder asks the processes to save and end.
STOP = "stop"
#: What the launcher starts.
PROCESS = Path(__file__).with_name("kept_process.py")
