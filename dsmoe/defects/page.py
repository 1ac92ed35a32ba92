"""docs/reference/defects-by-release.md, made of what was found in releases."""

from __future__ import annotations

from typing import Any

from dsmoe.common.errors import ResultsError
from dsmoe.defects.against import FAILED, FIXED, LIVES, NONE
from dsmoe.defects.listing import proofs
from dsmoe.defects.releases import FILE, since, state_of
from dsmoe.defects.unproved import UNPROVED, UNTRIED

PAGE = "docs/reference/defects-by-release.md"
_MARKS = {LIVES: "lives", FIXED: "fixed", NONE: "n/a", FAILED: "?"}
_INTRODUCTION = """# Defects by release

<!-- Made by dsmoe defects --write-docs: run the proofs again with --record. -->

The table says which [defects](defects.md) a release of DeepSpeed has, by proofs that use its
public interface alone. `dsmoe defects --against PYTHON` runs them against the DeepSpeed of another
environment, and prints the seconds and the command of each. `n/a`: the release lacks what the
defect is about. `?`: the proof could not run there, which says nothing about the defect. `-`: not
tried. The last column is found by bisecting: `dsmoe defects --bisect FOLDER` judges releases
between the last with a defect and the first without.

Releases before 0.14 know no CPU, or want Intel's extensions of torch. They run with a stand-in
(`dsmoe/defects/stand_in.py`), and say `cpu for CUDA` below: torch answers for CUDA with its CPU and
gloo, and DeepSpeed is not changed. Times, memory and fused operations cannot be judged so. The
verdicts of 0.5.6 are those of commit bd3ebd with only the patches that let it run on a CPU.

An environment for `--against`, or a subfolder of `--bisect`, is made by
`DS_BUILD_OPS=0 pip install deepspeed==RELEASE`: Python 3.9 with torch 1.12.1 up to 0.13, a current
Python and torch from 0.14 on. triton 1.0 keeps 0.10 to 0.13 from being imported; 2.1 does not.
"""


def page(releases: dict[str, dict[str, Any]]) -> str:
    """The page. Raises ResultsError where nothing was recorded."""
    if not releases:
        raise ResultsError(
            f"{FILE.name} has no release; run dsmoe defects --against PYTHON --record"
        )
    parts = [_INTRODUCTION, _tried(releases), _verdicts(releases), _seen(releases)]
    parts += [_failed(releases), _without()]
    return "\n".join(parts)


def _whole(releases: dict[str, dict[str, Any]]) -> list[str]:
    """The releases in which every proof was tried."""
    return [
        name for name, it in releases.items() if not any(state_of(it, p) == "-" for p in proofs())
    ]


def _tried(releases: dict[str, dict[str, Any]]) -> str:
    lines = ["| release | Python | torch | device | date | proofs |", "| --- " * 6 + "|"]
    for name, it in releases.items():
        cells = [name, it["python"], it["torch"], it["device"], it["date"]]
        lines.append(f"| {' | '.join(cells)} | {len(it['verdicts'])} |")
    return "\n".join([*lines, ""])


def _verdicts(releases: dict[str, dict[str, Any]]) -> str:
    names = _whole(releases)
    lines = ["## Verdicts", "", f"| # | what is right | {' | '.join(names)} | |"]
    lines.append("| --- " * (len(names) + 3) + "|")
    for proof in proofs():
        states = [state_of(releases[name], proof) for name in names]
        cells = " | ".join(_MARKS[state] for state in states)
        lines.append(f"| {proof.number} | {proof.title} | {cells} | {since(releases, proof)} |")
    return "\n".join([*lines, ""])


def _seen(releases: dict[str, dict[str, Any]]) -> str:
    newest = list(releases)[-1]
    lines = [
        f"## What was seen in {newest}",
        "",
        "`PYTHON dsmoe/defects/there.py dsmoe/defects/proofs/PROOF.py` shows a row, without dsmoe.",
        "",
        "| # | proof | verdict | seen | right | s |",
        "| --- " * 6 + "|",
    ]
    for proof in proofs():
        it = releases[newest]["verdicts"].get(proof.name, {})
        seen = it.get("seen", it.get("reason", ""))
        cells = [str(proof.number), f"`{proof.name}`", it.get("state", "-"), seen]
        cells += [it.get("right", ""), str(it.get("seconds", ""))]
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    return "\n".join([*lines, ""])


def _failed(releases: dict[str, dict[str, Any]]) -> str:
    found = [
        f"- {name}, `{proof.name}`: {_cell(it['verdicts'][proof.name]['reason'])}"
        for name, it in releases.items()
        for proof in proofs()
        if state_of(it, proof) == FAILED
    ]
    lines = ["## Could not run", "", *(found or ["Every proof gave an answer."]), ""]
    if UNTRIED:
        lines += ["## Not judged", "", "| release | why |", "| --- | --- |"]
        lines += [*(f"| {release} | {why} |" for release, why in UNTRIED.items()), ""]
    return "\n".join(lines)


def _without() -> str:
    lines = ["## Without a proof", "", "| # | what is right | why |", "| --- | --- | --- |"]
    lines += [f"| {number} | {title} | {why} |" for number, (title, why) in UNPROVED.items()]
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
