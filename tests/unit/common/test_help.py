"""Every command's help needs nothing but Python, and says how to use it and how it ends."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from functools import lru_cache

import pytest
from support import ROOT

from dsmoe import cli
from dsmoe.common import errors
from dsmoe.common.errors import ALWAYS, CHECKOUT, EXIT_CODES, OF_COMMANDS

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
    assert numbers == [str(code) for code in sorted({*ALWAYS, *OF_COMMANDS[name]})]
    entries = [f"{number} {EXIT_CODES[int(number)]}" for number in numbers]
    assert " ".join(listed.split()) == " ".join(entries)


# Raised in a module that the command imports, by a function that it does not call, or caught.
NOT_REACHED = {
    "run": {18},
    "train": {18},
    "plan": {9, 18},
    "check": {3, 4, 5, 6, 7, 9, 10, 13, 18},
    "export": {9},
    "bench": {16},
    "profile": {16},
    "converge": {16},
}


@lru_cache(maxsize=None)
def read(module: str) -> tuple[set[str], set[int]]:
    """The modules of ours that ``module`` imports anywhere, and the codes of what it raises."""
    file = ROOT / (module.replace(".", "/") + ".py")
    if not file.is_file():
        return set(), set()
    imported, codes = set(), set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body.clear()
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dsmoe"):
            imported |= {str(node.module), *(f"{node.module}.{item.name}" for item in node.names)}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            kind = getattr(errors, node.func.id, None)
            if isinstance(kind, type) and issubclass(kind, errors.DsmoeError):
                codes.add(kind.exit_code)
            if node.func.id == "StopSignals":
                codes.add(129)
    return imported, codes


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_table_has_the_codes_of_what_a_command_can_raise(name: str) -> None:
    seen: set[str] = set()
    codes: set[int] = set()
    todo = {f"dsmoe.commands.{name}"}
    while todo:
        module = todo.pop()
        seen.add(module)
        imported, raised = read(module)
        todo |= imported - seen
        codes |= raised
    listed = {*ALWAYS, *OF_COMMANDS[name]}
    assert codes - {1} - listed == NOT_REACHED.get(name, set())
    # the rest of the list: what no class of its own says, and the states of a checkout
    assert listed - codes <= {0, 1, 129, 130, 143, *range(20, 25), *ALWAYS}
    if "dsmoe.benchmark.run.patched_deepspeed" in seen:
        assert set(CHECKOUT) <= listed


def test_the_help_of_a_training_has_no_option_that_it_refuses() -> None:
    text = " ".join(helps()[0]["train"][1].split())
    assert "--plan" not in text and "--all " not in text and "--warmup " not in text
    assert "--all" not in helps()[0]["profile"][1] and "--all" in helps()[0]["run"][1]
    assert "--steps N The training ends after iteration N" in text


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
