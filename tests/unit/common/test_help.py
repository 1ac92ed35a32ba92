"""Every command's help needs nothing but Python, and says how to use it and how it ends."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import lru_cache

import pytest
from support import ROOT

from dsmoe import cli
from dsmoe.common.errors import EXIT_CODES

# All in one process: starting Python is most of what this costs. -S: without site-packages.
PROGRAM = """
import contextlib, io, json, sys
from dsmoe import cli
said = {}
for name in ("", *cli.COMMANDS):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = cli.main([*filter(None, [name]), "--help"])
    said[name] = [code, out.getvalue()]
print(json.dumps([said, sorted(m for m in sys.modules if "." not in m)]))
"""


@lru_cache(maxsize=None)
def helps() -> tuple[dict[str, tuple[int, str]], list[str]]:
    """Command (empty: dsmoe itself) -> exit code and text; and the modules that were imported."""
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said, modules = json.loads(done.stdout)
    return said, modules


def test_help_imports_the_standard_library_alone() -> None:
    _, modules = helps()
    packages = ("torch", "numpy", "git", "psutil", "filelock", "rich", "matplotlib", "deepspeed")
    assert "dsmoe" in modules and not set(packages) & set(modules)


def test_the_first_page_lists_every_command_in_a_sentence() -> None:
    code, text = helps()[0][""]
    assert code == 0
    for name, words in cli.COMMANDS.items():
        assert re.search(rf"^  {name} +{words.split()[0]} ", text, re.MULTILINE), name
        assert words in " ".join(text.split()), name
        assert words[0].isupper() and words.endswith(".")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_help_has_examples_and_exit_codes(name: str) -> None:
    code, text = helps()[0][name]
    assert code == 0 and text.startswith(f"usage: dsmoe {name}")
    examples = text.split("examples:\n")[1].split("\n\n")[0].splitlines()
    assert examples and any(line.startswith(f"  dsmoe {name}") for line in examples)
    listed = text.split("exit codes:\n")[1]
    numbers = re.findall(r"^  (\d+) ", listed, re.MULTILINE)
    assert {"0", "2", "130"} <= set(numbers)
    entries = [f"{number} {EXIT_CODES[int(number)]}" for number in numbers]
    assert " ".join(listed.split()) == " ".join(entries)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_example_is_a_command_line_that_the_parser_takes(name: str) -> None:
    import shlex

    command = __import__(f"dsmoe.commands.{name}", fromlist=["make_parser"])
    parser = command.make_parser(f"dsmoe {name}")
    text = helps()[0][name][1].split("examples:\n")[1].split("\n\n")[0]
    lines = [line for line in text.splitlines() if line.startswith(f"  dsmoe {name}")]
    for line in lines:
        words = re.split(r" {2,}", line.strip())[0]  # what follows two blanks is a remark
        parser.parse_args(shlex.split(words)[2:])


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    command = __import__(f"dsmoe.commands.{name}", fromlist=["make_parser"])
    for action in command.make_parser(f"dsmoe {name}")._actions:
        assert action.help, action


@pytest.mark.parametrize("script", ["apply_patch.py", "get_hostfiles.py"])
def test_the_scripts_help_is_under_their_own_name(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-E", script, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: python {script} ")


@pytest.mark.parametrize("words", ["nonsense", "run", "run 1 --nonsense", "plan x", "check x"])
def test_a_mistake_is_one_line_and_names_the_help(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words.split()) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "--help" in line
