"""What one call of ``dsmoe run`` is asked for, resolved once from its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.data.sources import TEXT_FIELD, Survey
from dsmoe.benchmark.launchers.deepspeed_runner import LOCAL
from dsmoe.benchmark.launchers.interface import Launcher
from dsmoe.benchmark.preflight.machine import Machine
from dsmoe.benchmark.run.launch import Limits
from dsmoe.benchmark.run.layout import Layout
from dsmoe.common.files import expanded

DEFAULT_TEXT_CAP = 8_000_000  # bytes of the standard library; a user's text is taken whole
# The first iteration comes after the imports, the model and, on GPUs, the kernels' first use.
FIRST_ITERATION_FACTOR = 3
FIRST_ITERATION_SECONDS = 300.0
TIME_OUT_SECONDS = 600.0


@dataclass(frozen=True)
class Text:
    """What is trained on: files, folders and globs (none: the standard library), a tokenizer file
    (None: bytes), the most bytes that are read (None: all), and the field of lines of JSON."""

    paths: tuple[str, ...] = ()
    tokenizer: str | None = None
    cap: int | None = None
    field: str = TEXT_FIELD

    @staticmethod
    def of(paths: list[str], tokenizer: str | None, field: str = TEXT_FIELD) -> Text:
        """The text of two options, with absolute paths."""
        return Text(
            tuple(str(expanded(p).absolute()) for p in paths),
            str(expanded(tokenizer).absolute()) if tokenizer else None,
            None if paths else DEFAULT_TEXT_CAP,
            field,
        )

    def options(self) -> dict[str, Any]:
        """Keyword arguments of ``corpus.prepare``, as plain data."""
        return {**vars(self), "paths": list(self.paths)}


@dataclass(frozen=True)
class Request:
    """The cases with the hosts of each, and everything that they share.

    ``machine``: where the processes run (the head of the host file). ``checkout``: the DeepSpeed
    that they import, and ``checkout_reason`` why that one. ``cache``: where prepared text is kept.
    ``launcher`` starts the processes, and ``launcher_reason`` says why that one. ``output``: the
    results folder; with several hosts, both are in a folder that all of them
    share. ``port`` None: a free one. ``master``: the first host's address, where it is not the
    launcher's to find out. ``link``: what a host sends is counted, and this is the link's name.
    ``surveyed``: the files of ``text``, where they were looked at already.
    """

    cases: tuple[tuple[Case, Layout], ...]
    machine: Machine
    checkout: Path
    checkout_reason: str
    text: Text
    cache: Path
    output: Path
    limits: Limits
    launcher: Launcher = LOCAL
    launcher_reason: str = ""
    port: int | None = None
    tensorboard: Path | None = None
    master: str | None = None
    resume: bool = False
    link: str | None = None
    surveyed: Survey | None = None

    @property
    def instance(self) -> str:
        """What rows call the machine: by its name and that of the link, where it has one."""
        return "-".join([self.machine.instance, *filter(None, [self.link])]).replace(" ", "-")


def limits(time_out: float = TIME_OUT_SECONDS) -> Limits:
    """Seconds allowed without an iteration, the first one longer."""
    return Limits(max(FIRST_ITERATION_SECONDS, FIRST_ITERATION_FACTOR * time_out), time_out)


def run_name(case: Case) -> str:
    """What the case's run folder is called after its time."""
    return f"{case.suite}-{case.model.name}-{case.parallel.processes}"
