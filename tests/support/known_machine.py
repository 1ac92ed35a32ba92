"""``dsmoe ARGUMENTS`` where it is known what torch sees of this machine: JSON before ARGUMENTS.

The command itself needs torch for nothing else, and the import takes two seconds.
"""

from __future__ import annotations

import json
import sys

from dsmoe import cli
from dsmoe.benchmark.preflight import local, machine

facts = json.loads(sys.argv[1])
machine.torch_facts = lambda: facts
local.torch_checks = lambda: []
sys.exit(cli.main(sys.argv[2:]))
