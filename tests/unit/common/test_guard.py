"""One wrapper makes one line and one exit code of every expected failure."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest
from support import ROOT

from dsmoe import cli
from dsmoe.common import errors
from dsmoe.common.errors import DsmoeError, LocalChanges, UsageError
from dsmoe.common.guard import TRACEBACK_VARIABLE, guarded


def failing(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


def test_a_command_s_own_exit_code_is_returned(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: 23) == 23
    assert capsys.readouterr() == ("", "")


def test_an_expected_failure_is_its_line_details_and_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = LocalChanges("2 files are in the way", ["a.py: edited", "b.py: untracked"])
    assert guarded(failing(error)) == 7
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "error: 2 files are in the way",
        "  a.py: edited",
        "  b.py: untracked",
    ]


def test_with_json_a_failure_is_an_object_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(failing(LocalChanges("in the way", ["a.py"])), wants_json=lambda: True) == 7
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "outcome": "failed",
        "error": "LocalChanges",
        "message": "in the way",
        "details": ["a.py"],
        "exit_code": 7,
    }
    assert err.startswith("error: in the way\n")


def test_json_of_a_real_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``--json`` is known before the options are read, so that a wrong option is JSON as well."""
    for words, name, code in (
        (["check", "--nonsense", "--json"], "UsageError", 2),
        (["hosts", "--hosts", "a,a", "--no-resolve", "--json"], "HostProblem", 16),
    ):
        assert cli.main(words) == code
        said = json.loads(capsys.readouterr().out)
        assert (said["outcome"], said["error"], said["exit_code"]) == ("failed", name, code)


def test_ctrl_c_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(failing(KeyboardInterrupt()), wants_json=lambda: True) == 130
    out, err = capsys.readouterr()
    assert err.startswith("error: interrupted by Ctrl-C") and err.count("\n") == 1
    assert json.loads(out)["exit_code"] == 130


SLEEPS = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from dsmoe.common.guard import guarded
def command():
    print("ready", flush=True)
    time.sleep(300)
sys.exit(guarded(command))
"""


def test_ctrl_c_of_a_real_process() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.startswith("error: interrupted by Ctrl-C") and err.count("\n") == 1


def test_an_operating_system_error_is_8_and_names_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> int:
        return len((tmp_path / "none" / "file").read_text())

    assert guarded(command) == 8
    err = capsys.readouterr().err
    assert err.startswith(f"error: {tmp_path}/none/file: No such file or directory; expected ")
    assert err.count("\n") == 1


def test_a_bug_is_no_expected_failure() -> None:
    """Only what the table of exit codes knows is caught: the rest keeps its traceback."""
    for bug in (ValueError("a bug"), AssertionError("a bug"), SystemExit(3)):
        with pytest.raises(type(bug)):
            guarded(failing(bug))


def test_the_traceback_is_shown_when_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    assert guarded(failing(UsageError("wrong"))) == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err and err.endswith("error: wrong\n")


def own_codes() -> dict[type[DsmoeError], int]:
    """The expected failures that state an exit code; the others have their parent's."""
    kinds = [DsmoeError]
    for kind in kinds:
        kinds += [k for k in kind.__subclasses__() if k.__module__.startswith("dsmoe.")]
    return {kind: kind.exit_code for kind in kinds if "exit_code" in vars(kind)}


def test_every_exit_code_has_one_class_and_one_meaning() -> None:
    """Interrupted alone decides when it is raised: 128 + the signal."""
    for module in sorted((ROOT / "dsmoe").rglob("*.py")):
        if "DsmoeError)" in module.read_text("utf-8"):  # so that every such class is defined
            name = ".".join(module.relative_to(ROOT).with_suffix("").parts)
            importlib.import_module(name)
    codes = own_codes()
    assert {kind.__module__ for kind in codes} == {errors.__name__}
    assert len(set(codes.values())) == len(codes)
    # what no class stands for: success, the states of --status, the signals
    others = {0, *range(20, 25), 129, 130, 143}
    assert errors.EXIT_CODES.keys() == others | set(codes.values())
    meanings = list(errors.EXIT_CODES.values())
    assert all(meanings) and len(set(meanings)) == len(meanings)


def test_the_states_of_status_have_the_codes_of_the_table() -> None:
    from dsmoe.patchset.checkout.state import EXIT_CODES

    codes = list(EXIT_CODES.values())
    assert len(set(codes)) == len(codes) and set(codes) <= errors.EXIT_CODES.keys()
    assert {code for code in codes if 20 <= code < 25} == set(range(20, 25))


def test_the_codes_that_are_written_out_are_those_of_the_table() -> None:
    """Files that old Pythons read, or that import nothing, have the number in themselves."""
    from dsmoe.common import guard
    from dsmoe.common.errors import EnvironmentProblem
    from dsmoe.common.packages import interpreter, requires

    assert interpreter.EXIT_CODE == requires.EXIT_CODE == EnvironmentProblem.exit_code
    assert guard.INTERRUPTED == 128 + signal.SIGINT


def test_a_full_disk_behind_the_output_does_not_change_the_code() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "dsmoe", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_working_directory_that_was_removed(tmp_path: Path) -> None:
    words = ["sh", "-c", 'rmdir "$PWD" && exec "$@"', "sh", sys.executable, "-m", "dsmoe", "check"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 8, done.stderr
    assert done.stderr == (
        "error: found a working directory that no longer exists; expected one: cd to another\n"
    )


ENDS = """
import atexit
from dsmoe.common.guard import guarded
from dsmoe.common.output import end_process
atexit.register(print, "Python's clean-up")
def command():
    print("{}")
    end_process(0)
guarded(command, lambda: True)
"""


@pytest.mark.parametrize(("out", "expected"), [("", 0), ("> /dev/full", 8), (">&-", 8)])
def test_json_that_is_lost_is_a_failure_of_a_command_that_ends_the_process(
    out: str, expected: int
) -> None:
    words = ["sh", "-c", f'exec "$@" {out}', "sh", sys.executable, "-c", ENDS]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (expected, "" if out else "{}\n"), done.stderr
    assert ("error: standard output: " in done.stderr) == bool(expected)


def test_an_error_inside_the_import_of_an_outside_package_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "picky_package.py").write_text("raise ValueError('PICKY=x must\\nbe a number')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert guarded(lambda: bool(importlib.import_module("picky_package"))) == 8
    err = capsys.readouterr().err
    assert err.startswith(
        "error: the package picky_package cannot be imported: ValueError: PICKY=x"
    )
    assert err.count("\n") == 1


def test_an_error_in_a_function_of_an_outside_package_stays_a_bug() -> None:
    with pytest.raises(json.JSONDecodeError):
        guarded(lambda: bool(json.loads("{")))
