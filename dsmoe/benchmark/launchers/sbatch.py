"""The batch script of ``--print-sbatch``: the same command, in a job of the right size."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Sequence

from dsmoe.benchmark.cases.placement import devices_of_a_host
from dsmoe.common.errors import UsageError
from dsmoe.common.places import import_root

# The command then has this long to end its processes and write its row.
SIGNAL_SECONDS = 60
CPU_SUITE = "smoke"


def batch_script(
    words: Sequence[str], processes: int, per_host: int | None, suite: str | None, folder: Path
) -> str:
    """The script that runs ``dsmoe WORDS`` from ``folder`` on nodes with ``per_host`` processes.

    ``per_host`` None: as many as fill nodes, at most 8. The suite ``smoke`` asks for no GPU. No
    name of a partition, an account or a time is known here: sbatch has options for them. Raises
    UsageError where the processes do not fill nodes.
    """
    each = min(processes, per_host or devices_of_a_host(processes))
    if processes % each:
        raise UsageError(
            f"--per-host {each}: {processes} processes do not fill nodes of {each}; name a number "
            f"that divides {processes}"
        )
    gpus = [f"#SBATCH --gpus-per-node={each}", "#SBATCH --exclusive"]
    python_path = [str(import_root()), *filter(None, [os.environ.get("PYTHONPATH")])]
    lines = [
        "#!/bin/bash",
        "#SBATCH --job-name=dsmoe",
        f"#SBATCH --nodes={processes // each}",
        f"#SBATCH --ntasks-per-node={each}",
        *([] if suite == CPU_SUITE else gpus),
        f"#SBATCH --signal=B:TERM@{SIGNAL_SECONDS}",
        "#SBATCH --output=dsmoe-%j.log",
        "# partition, account and time: sbatch --partition=NAME --account=NAME --time=2:00:00 FILE",
        f"cd {shlex.quote(str(folder))} || exit",
        f"export PYTHONPATH={shlex.quote(os.pathsep.join(dict.fromkeys(python_path)))}",
        f"exec {shlex.join([sys.executable, '-m', 'dsmoe', *words])}",
    ]
    return "\n".join(lines) + "\n"
