"""What the tests share: processes, scenarios, hosts, oracles."""

from pathlib import Path

#: The project's folder.
ROOT = Path(__file__).resolve().parents[2]
