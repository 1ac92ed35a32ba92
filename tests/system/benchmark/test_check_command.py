"""The environment check names what is wrong, on which host, and how to fix it."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from support.commands import NO_GPU, dsmoe

from dsmoe.benchmark.preflight import machine
from dsmoe.benchmark.preflight.check import FAIL, NOTE, OK
from dsmoe.benchmark.preflight.probe import SIGN
from dsmoe.benchmark.run import patched_deepspeed

# Host a answers for real, from this machine, and later the same but for the clock: importing torch
# and a look at the checkout take three seconds. b wants a password; c is another kind of machine; d
# has no such Python. What ssh was called with is kept.
SSH = """#!{python}
import json, os, shlex, subprocess, sys, time
host, command = sys.argv[-2:]
with open({log!r}, "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
if host == "a":
    if not os.path.exists({kept!r}):
        done = subprocess.run(["/bin/sh", "-c", command], stdout=subprocess.PIPE)
        with open({kept!r}, "wb") as kept:
            kept.write(done.stdout)
        sys.stdout.buffer.write(done.stdout)
        sys.exit(done.returncode)
    for line in open({kept!r}):
        if line.startswith({sign!r}):
            facts = json.loads(line[len({sign!r}):])
            facts["begin"] = facts["end"] = time.time()
            line = {sign!r} + json.dumps(facts) + "\\n"
        print(line, end="")
    sys.exit(0)
if host == "b":
    sys.exit(print("b: Permission denied (publickey,password).", file=sys.stderr) or 255)
if host == "d":
    sys.exit(print("sh: 1: python: not found", file=sys.stderr) or 127)
facts = {{"begin": time.time() + 3600, "end": time.time() + 3600, "python": "3.8.1",
         "torch": "1.10.0", "gpus": 8, "free_gpus": 3, "state": "pristine", "trees": {{}},
         "device_name": "GPU X", "device_memory_bytes": 1 << 36, "cuda": "12.1"}}
print("a greeting of the login shell\\n" + {sign!r} + json.dumps(facts))
"""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("kept") / "answer.txt")


@pytest.fixture
def hosts(kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "bin").mkdir()
    ssh = tmp_path / "bin" / "ssh"
    log = str(tmp_path / "calls.jsonl")
    ssh.write_text(SSH.format(python=sys.executable, log=log, sign=SIGN, kept=kept))
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "hostfile").write_text("a slots=2\nb slots=1\nc slots=4\nd slots=1\n")
    return tmp_path / "hostfile"


@pytest.mark.long
def test_hosts_one_by_one(checkout: Path, hosts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dsmoe("check", "--hostfile", hosts, "--json") == 8
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is False
    found = {(c["host"], c["what"]): c for c in said["checks"]}
    states = {what: check["state"] for (host, what), check in found.items() if host == "a"}
    # Only this machine's own state of the checkout may differ: edits are noted, not refused.
    assert states.pop("patched DeepSpeed") in (OK, NOTE)
    assert states == {"without a password": OK, "Python": OK, "torch": OK, "clock": OK,
                      "free GPUs": states["free GPUs"]}  # fmt: skip
    assert "ssh-copy-id b" in found["b", "without a password"]["fix"]
    bad = {what for (host, what), check in found.items() if host == "c" and check["state"] == FAIL}
    assert bad == {"Python", "torch", "patched DeepSpeed", "free GPUs", "clock"}
    assert found["c", "free GPUs"]["found"] == "3 of 8, 4 asked for"
    ahead, doubt = re.findall(r"[0-9.]+", found["c", "clock"]["found"])  # both rounded to 0.1
    assert abs(float(ahead) - 3600) <= float(doubt) + 0.1
    assert found["d", "Python"]["state"] == FAIL and "not found" in found["d", "Python"]["found"]
    calls = [json.loads(line) for line in (hosts.parent / "calls.jsonl").read_text().splitlines()]
    assert all("BatchMode=yes" in call and call[-3] == "--" for call in calls) and len(calls) == 4


@pytest.mark.parametrize(
    ("text", "processes", "expected"),
    [
        # b cannot be entered: said before anything is trained, whoever the head is.
        ("a slots=1\nb slots=1\n", "2", "b: without a password: b: Permission denied"),
        ("b slots=2\n", "2", "b: b: Permission denied"),
        # A head with GPUs makes it a run on GPUs, although this machine has none.
        ("c slots=8\n", "8", r"c: Python: 3\.8\.1, here .* \(2 more\)"),
        ("c slots=16\n", "16", r"c: Python: .* \(3 more\)"),  # it has 8
    ],
)
def test_a_run_asks_its_hosts_first(
    text: str, processes: str, expected: str, hosts: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(machine, "this_machine", lambda: NO_GPU)
    monkeypatch.setattr(patched_deepspeed, "ensure", lambda path, say=print: None)
    hosts.write_text(text)
    output = hosts.parent / "out"
    suite = ["--suite", "smoke"] if processes == "2" else []
    options = ["--hostfile", str(hosts), "--output", str(output), *suite]
    assert dsmoe("run", processes, *options) == 8
    *progress, line = capsys.readouterr().err.splitlines()
    assert all(re.match("== asking [abc], the first host$", said) for said in progress)
    assert re.match(f"error: {expected}", line) and "dsmoe check --hostfile" in line
    assert not output.exists()


def test_this_machine_has_a_mark_a_line(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dsmoe("check") == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("[ ok ] ", "[note] ")) or "fix: " in line for line in lines)
    text = "\n".join(lines)
    for what in ("Python", "torch", "device", "patched DeepSpeed", "import deepspeed", "disk"):
        assert what in text
    assert str(checkout / "deepspeed" / "__init__.py") in text
