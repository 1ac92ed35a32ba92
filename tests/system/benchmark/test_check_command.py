"""The environment check names what is wrong, on which host, and what mends it."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path

import pytest

from dsmoe.benchmark.preflight import hosts as hosts_check
from dsmoe.benchmark.preflight import local
from dsmoe.benchmark.preflight.check import FAIL, NOTE, OK, Check
from dsmoe.benchmark.preflight.machine import Machine
from dsmoe.benchmark.preflight.probe import SIGN
from dsmoe.benchmark.run import patched_deepspeed
from dsmoe.commands import run as cli
from dsmoe.common import dependencies
from dsmoe.common.errors import EnvironmentProblem

# Host a answers for real, from this machine; b wants a password; c is another kind of machine; d
# has no such Python. What ssh was called with is kept.
SSH = """#!{python}
import json, os, shlex, subprocess, sys, time
host, command = sys.argv[-2:]
with open({log!r}, "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
if host == "a":
    os.execv("/bin/sh", ["sh", "-c", command])
if host == "b":
    sys.exit(print("b: Permission denied (publickey,password).", file=sys.stderr) or 255)
if host == "d":
    sys.exit(print("sh: 1: python: not found", file=sys.stderr) or 127)
facts = {{"begin": time.time() + 3600, "end": time.time() + 3600, "python": "3.8.1",
         "torch": "1.10.0", "gpus": 8, "free_gpus": 3, "state": "pristine", "trees": {{}},
         "device_name": "GPU X", "device_memory_bytes": 1 << 36, "cuda": "12.1"}}
print("a greeting of the login shell\\n" + {sign!r} + json.dumps(facts))
"""


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "bin").mkdir()
    ssh = tmp_path / "bin" / "ssh"
    log = str(tmp_path / "calls.jsonl")
    ssh.write_text(SSH.format(python=sys.executable, log=log, sign=SIGN))
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "hostfile").write_text("a slots=2\nb slots=1\nc slots=4\nd slots=1\n")
    return tmp_path / "hostfile"


def test_hosts_one_by_one(hosts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = time.monotonic()
    assert local.main(["--hostfile", str(hosts), "--json"]) == 8
    assert time.monotonic() - start < 60
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is False
    found = {(c["host"], c["what"]): c for c in said["checks"]}
    states = {what: check["state"] for (host, what), check in found.items() if host == "a"}
    # Only this machine's own state of the checkout may differ: edits are noted, not refused.
    assert states.pop("patched DeepSpeed") in (OK, NOTE)
    assert states == {"without a password": OK, "Python": OK, "torch": OK, "clock": OK,
                      "free GPUs": states["free GPUs"]}  # fmt: skip
    assert "ssh-copy-id b" in found["b", "without a password"]["mend"]
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
    monkeypatch.setattr(cli, "this_machine", lambda: Machine("cpu", "cpu", {}, {}))
    monkeypatch.setattr(patched_deepspeed, "ensure", lambda place: None)
    hosts.write_text(text)
    output = hosts.parent / "out"
    suite = ["--suite", "smoke"] if processes == "2" else []
    options = ["--hostfile", str(hosts), "--output", str(output), *suite]
    assert cli.main([processes, *options]) == 8
    [line] = capsys.readouterr().err.splitlines()
    assert re.match(f"error: {expected}", line) and "environment --hostfile" in line
    assert not output.exists()


def test_a_busy_gpu_and_a_wrong_clock_are_warnings(tmp_path: Path, monkeypatch) -> None:
    found = [
        Check("clock", FAIL, "+9.0 s", "set it", "a"),
        Check("free GPUs", FAIL, "3 of 8, 4 asked for", "end what uses them", "a"),
        Check("torch", OK, "2.13.0", host="a"),
    ]
    monkeypatch.setattr(hosts_check, "check_hosts", lambda *_: found)
    lines = hosts_check.refuse_unfit([], tmp_path, tmp_path, tmp_path)
    assert lines == ["a: clock: +9.0 s; set it",
                     "a: free GPUs: 3 of 8, 4 asked for; end what uses them"]  # fmt: skip
    found.append(Check("torch", FAIL, "1.10.0, here 2.13.0", "install it", "b"))
    with pytest.raises(EnvironmentProblem, match=r"^b: torch: 1\.10\.0, here 2\.13\.0; install"):
        hosts_check.refuse_unfit([], tmp_path, tmp_path, tmp_path)


def test_this_machine_has_a_mark_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert local.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("[ ok ] ", "[note] ")) or "mend: " in line for line in lines)
    text = "\n".join(lines)
    for what in ("Python", "torch", "device", "patched DeepSpeed", "import deepspeed", "disk"):
        assert what in text
    assert str(patched_deepspeed.location() / "deepspeed" / "__init__.py") in text


def test_what_is_missing_has_its_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert local.tool_check("pdsh", needed=True).state == FAIL
    assert local.tool_check("pdsh", needed=False).state == NOTE
    [broken] = local.checkout_checks(tmp_path)
    assert broken.state == FAIL and broken.found.startswith("git was not found on PATH")
    monkeypatch.undo()
    [there, launcher] = local.checkout_checks(tmp_path / "none")
    assert there.mend.endswith("none --from-release") and launcher.state == NOTE
    assert local.checkout_checks(tmp_path)[0].state == FAIL
    monkeypatch.setattr(local, "PYTHONS", ((2, 6), (2, 7)))
    with pytest.raises(EnvironmentProblem, match=r"Python: .*use Python 3.9 to 3.13"):
        local.quick(tmp_path)


def test_a_host_file_that_is_none_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hostfile").write_text("a;touch planted slots=1\n")
    assert local.main(["--hostfile", str(tmp_path / "hostfile")]) != 0
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "hostfile:1" in said and said.count("\n") == 1


def test_kernels_are_asked_of_a_hopper_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert local.kernel_checks(8) == []
    monkeypatch.setattr(sys, "version_info", (3, 12))
    here = {"quack-kernels": "0.6.5", "flash-attn-4": "4.0.0b36", "nvidia-cutlass-dsl": "4.8.1"}
    monkeypatch.setattr(dependencies, "version_of", here.get)
    [check] = local.kernel_checks(9)
    assert (check.state, check.found) == (
        OK,
        "quack-kernels 0.6.5, flash-attn-4 4.0.0b36, nvidia-cutlass-dsl 4.8.1",
    )
    del here["quack-kernels"]
    here["flash-attn-4"] = "4.0.0b35"
    [check] = local.kernel_checks(9)
    assert check.state == NOTE and "setup.sh" in check.mend
    assert check.found.startswith("quack-kernels missing, flash-attn-4 4.0.0b35: ")
    monkeypatch.setattr(sys, "version_info", (3, 9))
    [check] = local.kernel_checks(9)
    assert "need Python 3.10" in check.found
