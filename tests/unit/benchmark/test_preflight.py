"""Each check says what it found and what to do; some failures are no reason to stop."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from support import hanging
from support.commands import dsmoe

from dsmoe.benchmark.preflight import asking, host_checks, local_checks
from dsmoe.benchmark.preflight.asking import ssh_way
from dsmoe.benchmark.preflight.check import FAIL, NOTE, OK, Check
from dsmoe.common.errors import EnvironmentProblem
from dsmoe.common.packages import dependencies
from dsmoe.hosts.host import Host


def test_a_busy_gpu_and_a_wrong_clock_are_warnings(tmp_path: Path, monkeypatch) -> None:
    found = [
        Check("clock", FAIL, "+9.0 s", "set it", "a"),
        Check("free GPUs", FAIL, "3 of 8, 4 asked for", "end what uses them", "a"),
        Check("torch", OK, "2.13.0", host="a"),
    ]
    monkeypatch.setattr(host_checks, "check_hosts", lambda *_: found)
    way = ssh_way(tmp_path)
    lines = host_checks.refuse_unfit([], way, tmp_path, tmp_path)
    assert lines == ["a: clock: +9.0 s; set it",
                     "a: free GPUs: 3 of 8, 4 asked for; end what uses them"]  # fmt: skip
    found.append(Check("torch", FAIL, "1.10.0, here 2.13.0", "install it", "b"))
    with pytest.raises(EnvironmentProblem, match=r"^b: torch: 1\.10\.0, here 2\.13\.0; install"):
        host_checks.refuse_unfit([], way, tmp_path, tmp_path)


def test_what_is_missing_has_its_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert local_checks.tool_check("pdsh", needed=True).state == FAIL
    assert local_checks.tool_check("pdsh", needed=False).state == NOTE
    [broken] = local_checks.checkout_checks(tmp_path)
    assert broken.state == FAIL and broken.found.startswith("git was not found on PATH")
    monkeypatch.undo()
    [there, launcher] = local_checks.checkout_checks(tmp_path / "none")
    assert there.fix.endswith("none --from-release") and launcher.state == NOTE
    assert local_checks.checkout_checks(tmp_path)[0].state == FAIL
    monkeypatch.setattr(local_checks, "PYTHONS", ((2, 6), (2, 7)))
    with pytest.raises(EnvironmentProblem, match=r"Python: .*use Python 3.9 to 3.13"):
        local_checks.quick(tmp_path)


def test_a_host_file_that_is_none_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hostfile").write_text("a;touch planted slots=1\n")
    assert dsmoe("check", "--hostfile", tmp_path / "hostfile") == 16
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "hostfile:1" in said and said.count("\n") == 1


def test_kernels_are_asked_of_a_hopper_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_checks.kernel_checks(8) == []
    monkeypatch.setattr(sys, "version_info", (3, 12))
    here = {"quack-kernels": "0.6.5", "flash-attn-4": "4.0.0b36", "nvidia-cutlass-dsl": "4.8.1"}
    monkeypatch.setattr(dependencies, "version_of", here.get)
    [check] = local_checks.kernel_checks(9)
    assert (check.state, check.found) == (
        OK,
        "quack-kernels 0.6.5, flash-attn-4 4.0.0b36, nvidia-cutlass-dsl 4.8.1",
    )
    del here["quack-kernels"]
    here["flash-attn-4"] = "4.0.0b35"
    [check] = local_checks.kernel_checks(9)
    assert check.state == NOTE and "setup.sh" in check.fix
    assert check.found.startswith("quack-kernels missing, flash-attn-4 4.0.0b35: ")
    monkeypatch.setattr(sys, "version_info", (3, 9))
    [check] = local_checks.kernel_checks(9)
    assert "need Python 3.10" in check.found


def test_results_cannot_be_written_into_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        check = local_checks.disk_check(output)
        assert (check.state, check.found) == (FAIL, f"{tmp_path / 'file'} is a file")


@pytest.mark.parametrize("name", ["results_e2e.tsv", "results_e2e.jsonl", ".results_e2e.lock"])
def test_files_of_the_results_that_are_none_are_found_before_a_run(
    name: str, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / name)
    check = local_checks.disk_check(tmp_path)
    assert (check.state, check.found) == (FAIL, f"{tmp_path / name} is not a regular file")


def test_ssh_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging.program(tmp_path, "ssh", hanging.HANGS, monkeypatch)
    monkeypatch.setattr(asking, "HELLO_SECONDS", 0.5)
    with pytest.raises(EnvironmentProblem, match=r"^n2: ssh gave no answer within 0\.5 s"):
        way = ssh_way(tmp_path / "hostfile")
        host_checks.head_facts(Host("n2", 1), way, tmp_path, tmp_path)


def test_an_import_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging.package(tmp_path, "deepspeed", monkeypatch)
    monkeypatch.setattr(local_checks, "IMPORT_SECONDS", 0.5)
    check = local_checks.import_check(tmp_path)
    assert check.state == local_checks.FAIL
    assert check.found == "importing it did not end within 0.5 s"
