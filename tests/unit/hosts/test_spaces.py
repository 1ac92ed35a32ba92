"""Tools that make network namespaces and that hang: one line that names them."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest
from support import hanging

from dsmoe.common.errors import EnvironmentProblem
from dsmoe.hosts.spaces import guardian, ssh
from dsmoe.hosts.spaces.link import Link


@pytest.mark.parametrize("name", ["ip", "tc", "ssh-keygen"])
def test_a_tool_that_hangs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging.program(tmp_path, name, hanging.CHILD_HANGS, monkeypatch)
    monkeypatch.setattr(guardian, "TOOL_SECONDS", 0.5)
    late = rf"{name} did not end within 0\.5 s"
    begin = time.monotonic()
    if name == "ip":
        with pytest.raises(subprocess.CalledProcessError) as said:
            guardian.ip("netns")
        assert re.search(late, said.value.stderr)
    elif name == "tc":
        with pytest.raises(EnvironmentProblem, match=late):
            Link("1gbit").apply("none", "eth0", leaves_host=True)
    else:
        with pytest.raises(EnvironmentProblem, match=late):
            ssh.make_keys(tmp_path)
    assert time.monotonic() - begin < 30
