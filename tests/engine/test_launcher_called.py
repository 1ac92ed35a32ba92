"""A program that calls the launcher's main gets a ValueError where it refuses, as from DeepSpeed's.

The command prints one line and exits with 2 all the same.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

REFUSED = {
    "--num_nodes 1 -i localhost script.py": "include/exclude",
    "--num_nodes 1 --num_gpus 1 -e localhost script.py": "include/exclude",
    "--num_nodes 2 --hostfile /dev/null script.py": "Num nodes is >1",
    "--hostfile absent script.py": "absent",
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_program_gets_a_value_error(words: str) -> None:
    from deepspeed.launcher import runner

    with pytest.raises(ValueError, match=REFUSED[words]):
        runner.main(words.split())


@pytest.mark.long
def test_the_command_exits_with_2() -> None:
    words = next(iter(REFUSED))
    command = [sys.executable, "-m", "deepspeed.launcher.runner", *words.split()]
    run = subprocess.run(command, capture_output=True, text=True)
    last = run.stderr.strip().splitlines()[-1]
    assert run.returncode == 2 and last.startswith("deepspeed: error: ") and "Traceback" not in last
    assert "Traceback" not in run.stderr
