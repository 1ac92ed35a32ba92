"""Command lines, drawn from the commands' own parsers: a new option is covered by itself."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from hypothesis import strategies as st

from dsmoe.cli import COMMANDS
from dsmoe.common.arguments import count, file_name, positive, seed, whole
from support.fuzz import models
from support.fuzz.sandbox import NAMES

PATH_WORDS = {"PATH", "FILE", "DIR", "CHECKOUT", "RESULTS"}
NUMBERS = [
    "0",
    "1",
    "2",
    "3",
    "7",
    "8",
    "16",
    "64",
    "-1",
    "1.5",
    "1e3",
    "1e400",
    "nan",
    "inf",
    "65",
    "1000000000",
    "1000000001",
    "x",
] + ["9" * 30, "9" * 5000, "", " 1", "\uff11", "1_0", "0x10", "--", "-"]
GOOD_NUMBERS = ["1", "1", "1", "2", "2", "4", "8", "16", "64"] * 3
WORDS = ["", "é", "\x1b[31m", "a\nb", "$x$", "%s", "{}", "\udcff", "x" * 300, "x" * 9000, "1", "/"]
HOSTS = ["127.0.0.1:8", "a,,b", "a:x", "a,a", "n[1-3]:4", "n[1-99999999]", "[::1]", ",", "-oX=y:1"]
SERIES = ["380M", "syn", "NAME.patch", "one.patch", "../x.patch", "#x.patch", "a\nb.patch"]
#: What a variable of the environment may hold; those that dsmoe reads (docs/reference).
VARIABLES = [
    "DSMOE_HOME",
    "DSMOE_BASE",
    "DSMOE_DEEPSPEED",
    "DEEPSPEED_PATH",
    "DSMOE_ARCHIVE_DIR",
    "DSMOE_KERNELS",
    "HOME",
    "XDG_CACHE_HOME",
    "COLUMNS",
    "RAY_ADDRESS",
    "SLURM_JOB_NODELIST",
    "SLURM_JOB_ID",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_TASKS_PER_NODE",
    "WORLD_SIZE",
    "PYTHONPATH",
    "LANG",
    "TERM",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_CONFIG_GLOBAL",
    "RANK",
    "MASTER_PORT",
    "_ARGCOMPLETE",
    "NO_COLOR",
    "SOURCE_DATE_EPOCH",
    "MPLBACKEND",
    "MPLCONFIGDIR",
    "MATPLOTLIBRC",
    "TORCH_LOGS",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "TMPDIR",
    "XDG_CONFIG_HOME",
    "DSMOE_KERNEL_X",
]

paths = st.sampled_from(NAMES)
numbers = st.sampled_from([*NUMBERS, *GOOD_NUMBERS])
words = st.sampled_from(WORDS + HOSTS + SERIES)


def values_of(action: argparse.Action) -> st.SearchStrategy[str]:
    """What is drawn for an option: mostly of its own kind, sometimes of another."""
    if action.dest in ("folder", "load", "save"):
        own: Any = st.one_of(paths, st.sampled_from(models.NAMES))
    elif action.choices:
        own = st.sampled_from([str(choice) for choice in action.choices])
    elif action.type is file_name or action.metavar in PATH_WORDS:
        own = paths
    elif action.type in (count, whole, seed, positive, int, float) or action.metavar in (
        "N",
        "S",
        "NUM_GPUS",
        "PORT",
    ):
        own = numbers
    else:
        own = words
    # drawn by one number, so that a case is not a variant of the one before
    other = st.one_of(words, paths, numbers)
    return st.integers(0, 11).flatmap(lambda n: other if n == 7 else own)


def arguments_of(action: argparse.Action) -> st.SearchStrategy[list[str]]:
    """One use of ``action``: its option, if it has one, and its values."""
    values = values_of(action)
    if action.nargs == 0:
        several = st.just([])
    elif action.nargs in ("+", "*"):
        several = st.lists(values, min_size=1, max_size=3)
    elif action.nargs == "?":
        several = st.lists(values, max_size=1)
    else:
        several = st.lists(values, min_size=1, max_size=1)
    name = st.sampled_from(action.option_strings) if action.option_strings else None
    if name is None:
        return several
    return st.tuples(name, several).map(lambda pair: [pair[0], *pair[1]])


def parser_of(command: str) -> argparse.ArgumentParser:
    made = importlib.import_module(f"dsmoe.commands.{command}").make_parser(f"dsmoe {command}")
    assert isinstance(made, argparse.ArgumentParser)
    return made


@st.composite
def command_lines(draw: Any) -> list[str]:
    """Any command with a few of its options, sometimes with words that it does not know."""
    command = draw(st.sampled_from([*COMMANDS, *COMMANDS, "--version", "--help", "nonsense"]))
    if command not in COMMANDS:
        return [command, *draw(st.lists(words, max_size=2))]
    actions = [a for a in parser_of(command)._actions if "--help" not in a.option_strings]
    needed = [a for a in actions if not a.option_strings]
    others = [a for a in actions if a.option_strings]
    line = [command]
    if draw(st.integers(0, 15)) != 7:
        for action in needed:
            line += draw(arguments_of(action))
    for action in draw(st.lists(st.sampled_from(others), max_size=4)):
        line += draw(arguments_of(action))
    if draw(st.integers(0, 25)) == 7:
        line.insert(draw(st.integers(1, len(line))), draw(words))
    return line


environments = st.dictionaries(
    st.sampled_from(VARIABLES), st.one_of(paths, words, numbers), max_size=2
)
