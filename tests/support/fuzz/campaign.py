"""Many cases: sandboxes are made and checked, wrong ends are collected."""

from __future__ import annotations

import contextlib
import encodings
import gc
import importlib
import os
import pkgutil
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from dsmoe import cli
from support import ROOT
from support.fuzz import child, sandbox
from support.fuzz.child import CHANNELS, NOBODY, Case, End
from support.fuzz.commands import command_lines, environments
from support.patch_fixtures import make_template

#: What no case may change: the project's own files and these devices.
WATCHED = ("patch", "overlay", "bases", "dsmoe", "docs", "scripts", "tests")
#: Imported before a child is nobody, which may not read this Python's library.
PRELOADED = (
    "rich.console",
    "torch",
    "safetensors.torch",
    "tokenizers",
    "tensorboard",
    "setuptools",  # before pip, after whose import it cannot be imported (_distutils_hack)
    "pip",
    "ray",
    "rich.table",
)
DEVICES = ("/dev/null", "/dev/zero", "/dev/full")
#: A sandbox serves so many cases; what commands wrote in it stays for the next ones.
EACH = 200


@dataclass
class Campaign:
    """``cases`` were run, all different; ``found`` are those that ended badly, with what is wrong.

    ``seen`` are the cases that were run: the same one again is neither run nor counted.
    """

    cases: int = 0
    as_nobody: int = 0
    codes: dict[int, int] = field(default_factory=dict)
    found: list[tuple[Case, End, str]] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def summary(self) -> str:
        kinds = [what for *_, what in self.found]
        late = sum(what.startswith("took") for what in kinds)
        traced = sum(what == "a traceback" for what in kinds)
        codes = ", ".join(f"{code}: {count}" for code, count in sorted(self.codes.items()))
        return (
            f"{self.cases} different cases ({self.as_nobody} as nobody): {traced} tracebacks, "
            f"{late} over {child.SECONDS:.0f} s, {len(kinds) - traced - late} other wrong ends, "
            f"{len(self.changed)} files changed outside; exit codes {codes}"
        )


cases = st.builds(
    Case, command_lines(), environments, st.sampled_from((0, NOBODY)), st.sampled_from(CHANNELS)
)


def run_cases(number: int, first_seed: int = 0, seconds: float = float("inf")) -> Campaign:
    """Up to ``number`` cases, or as many as ``seconds`` have time for."""
    campaign, end = Campaign(), time.monotonic() + seconds
    with _quiet_place() as place:
        _warm(place)
        before = _watched()
        batch = first_seed
        while campaign.cases < number and time.monotonic() < end:
            _batch(campaign, place, batch, number, end)
            print(f"  {campaign.summary()}", flush=True)
            batch += 1
        after = _watched()
        campaign.changed = sorted(k for k in before.keys() | after if before.get(k) != after.get(k))
    return campaign


def _batch(campaign: Campaign, place: Path, batch: int, number: int, end: float) -> None:
    root = place / f"s{batch}"
    for user in (0, NOBODY):
        made = root / str(user)
        made.mkdir(parents=True)
        sandbox.make(made, place / "project", place / "checkout")
        if user and os.geteuid() == 0:
            sandbox.owned_by(made, user)

    @seed(batch)
    @settings(
        max_examples=EACH,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases, st.integers(0, 2**32))
    def one(case: Case, mutation: int) -> None:
        if time.monotonic() > end or campaign.cases >= number:
            return
        if os.geteuid() != 0:
            case.user = 0
        known = f"{case}" + (f"{mutation}" if "mutant" in f"{case.words}" else "")
        if known in campaign.seen:
            return
        campaign.seen.add(known)
        home = root / str(case.user)
        with contextlib.suppress(OSError):
            sandbox.mutate(home, mutation)
        ended = child.run(case, home)
        campaign.cases += 1
        campaign.as_nobody += case.user != 0
        campaign.codes[ended.code] = campaign.codes.get(ended.code, 0) + 1
        what = child.wrong(case, ended)
        if what:
            campaign.found.append((case, ended, what))

    one()
    shutil.rmtree(root, ignore_errors=True)


def preload_engine() -> None:
    """Import the patched DeepSpeed, so that a case gets as far as reading a model's weights."""
    sys.path.insert(0, str(ROOT / "build/DeepSpeed"))
    importlib.import_module("deepspeed.moe.lm")


@contextlib.contextmanager
def _quiet_place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="dsmoe-fuzz-") as name, contextlib.ExitStack() as undo:
        place = Path(name)
        place.chmod(0o755)
        template = make_template(place)
        template.clone(place / "checkout")
        for module, attribute, stand_in in child.stand_ins():
            loaded = importlib.import_module(module)
            undo.callback(setattr, loaded, attribute, getattr(loaded, attribute))
            setattr(loaded, attribute, stand_in)
        yield place


def _warm(place: Path) -> None:
    """Import everything now: a child that is nobody may not read this Python's library."""
    for path in sorted((ROOT / "dsmoe").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if not name.endswith(("__init__", "__main__", "worker", "process", "program")):
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    codecs = [f"encodings.{module.name}" for module in pkgutil.iter_modules(encodings.__path__)]
    for name in (*PRELOADED, *codecs):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # a fork then copies less
    here = Path.cwd()
    warm = place / "warm"
    warm.mkdir()
    sandbox.make(warm, place / "project", place / "checkout")
    os.chdir(warm)
    try:
        with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
            for words in (
                "plot good --output x/figure",
                "plot cpu --cpu --output x/cpu",
                "report good --output x/page.html",
                "bench --table good",
                "hosts --hosts 127.0.0.1:1 --dry-run --json",
                "run 1 --dry-run --tokenizer tok/word --data text.txt",
                "converge --plot-only --output conv/good",
                "apply checkout --bases project/bases",
                "apply checkout --bases project/bases --export",
                "apply checkout --bases project/bases --revert",
                "--version",
                "check --help",
            ):
                with contextlib.suppress(Exception):  # of a test that breaks the wrapper
                    cli.main(words.split())
    finally:
        os.chdir(here)
    shutil.rmtree(warm)


def _watched() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for top in WATCHED:
        for path in (ROOT / top).rglob("*"):
            if "__pycache__" not in path.parts:
                state = path.lstat()
                found[str(path)] = (state.st_mode, state.st_size, state.st_mtime_ns)
    for device in DEVICES:
        state = Path(device).stat()
        found[device] = (state.st_mode, state.st_rdev)
    return found
