"""What was found in releases of DeepSpeed, kept in releases.json, and the page made of it."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

from dsmoe.common.errors import ResultsError
from dsmoe.common.files import write_atomically
from dsmoe.defects.against import FAILED, FIXED, LIVES, NONE
from dsmoe.defects.listing import HERE, Proof, patches, proofs
from dsmoe.defects.unproved import UNPROVED, UNTRIED

FILE = HERE / "releases.json"
PAGE = "docs/reference/defects-by-release.md"
_MARKS = {LIVES: "lives", FIXED: "fixed", NONE: "n/a", FAILED: "?"}


def order(release: str) -> tuple[int, ...]:
    """A key that sorts releases: 0.9.5 before 0.12.6."""
    return tuple(int(part) for part in release.split("+")[0].split(".") if part.isdigit())


def read(file: Path = FILE) -> dict[str, dict[str, Any]]:
    """Release -> versions, date and verdicts, the oldest first. Raises ResultsError."""
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except (OSError, ValueError) as error:
        raise ResultsError(f"{file} cannot be read: {error}") from None
    return {name: found[name] for name in sorted(found, key=order)}


def record(versions: dict[str, str], verdicts: dict[str, dict[str, Any]], file: Path = FILE) -> str:
    """Keep what was found; a later run of a proof replaces the earlier. Returns the release."""
    releases = read(file)
    release = versions["deepspeed"].split("+")[0]
    kept = releases.get(release, {}).get("verdicts", {})
    releases[release] = {
        **versions,
        "date": date.today().isoformat(),
        "verdicts": dict(sorted({**kept, **verdicts}.items())),
    }
    ordered = {name: releases[name] for name in sorted(releases, key=order)}
    write_atomically(file, (json.dumps(ordered, indent=1) + "\n").encode())
    return release


def state_of(release: dict[str, Any], proof: Proof) -> str:
    """The verdict's word, or "-" where the proof was not run."""
    return str(release["verdicts"].get(proof.name, {}).get("state", "-"))


def since(releases: dict[str, dict[str, Any]], proof: Proof) -> str:
    """Where it was seen: the last release that has it and the first that has it not."""
    states = {name: state_of(release, proof) for name, release in releases.items()}
    lives = [name for name, state in states.items() if state == LIVES]
    known = [name for name, state in states.items() if state in (LIVES, FIXED, NONE)]
    if not known:
        return "not known"
    if states[known[-1]] == LIVES:
        return f"lives in {known[-1]}"
    earlier = [name for name in lives if order(name) < order(known[-1])]
    after = [name for name in known if not earlier or order(name) > order(earlier[-1])]
    word = "not applicable" if states[after[0]] == NONE else "fixed"
    if earlier and word != "fixed":
        return f"{word} since {after[0]} (lives in {earlier[-1]})"
    if earlier:  # releases between the two were not tried
        return f"{word} between {earlier[-1]} and {after[0]}"
    return f"{word} since {after[0]} or earlier"


def page(releases: dict[str, dict[str, Any]]) -> str:
    """docs/reference/defects-by-release.md."""
    if not releases:
        raise ResultsError(
            f"{FILE.name} has no release; run dsmoe defects --against PYTHON --record"
        )
    names = list(releases)
    lines = [
        "# Defects by release",
        "",
        "<!-- Made by dsmoe defects --write-docs: run the proofs again with --record. -->",
        "",
        "The table says which [defects](defects.md) a release of DeepSpeed has, by proofs that use "
        "its public interface alone. `dsmoe defects --against PYTHON` runs them against the "
        "DeepSpeed of another environment. `n/a`: the release lacks what the defect is about. "
        "`?`: the proof could not run there, which says nothing about the defect. `-`: not tried.",
        "",
        "| release | Python | torch | device | date |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in names:
        it = releases[name]
        lines.append(f"| {name} | {it['python']} | {it['torch']} | {it['device']} | {it['date']} |")
    lines += ["", "## Verdicts", ""]
    lines.append("| # | what is right | " + " | ".join(names) + " | |")
    lines.append("| --- | --- |" + " --- |" * len(names) + " --- |")
    for proof in proofs():
        states = [state_of(releases[name], proof) for name in names]
        cells = " | ".join(_MARKS.get(state, state) for state in states)
        lines.append(f"| {proof.number} | {proof.title} | {cells} | {since(releases, proof)} |")
    lines += ["", f"## What was seen in {names[-1]}", ""]
    lines += ["| # | proof | verdict | seen | right |", "| --- | --- | --- | --- | --- |"]
    for proof in proofs():
        it = releases[names[-1]]["verdicts"].get(proof.name, {})
        seen = it.get("seen", it.get("reason", ""))
        found = [str(proof.number), f"`{proof.name}`", it.get("state", "-"), seen]
        lines.append("| " + " | ".join(_cell(c) for c in [*found, it.get("right", "")]) + " |")
    lines += ["", "## Could not run", ""]
    failed = [
        f"- {name}, `{proof.name}`: {_cell(it['reason'])}"
        for name in names
        for proof in proofs()
        for it in [releases[name]["verdicts"].get(proof.name, {})]
        if it.get("state") == FAILED
    ]
    lines += failed or ["Every proof gave an answer."]
    lines += ["", "## Releases without a full record", "", "| release | why |", "| --- | --- |"]
    lines += [f"| {release} | {why} |" for release, why in UNTRIED.items()]
    lines += ["", "## Without a proof", "", "| # | what is right | why |", "| --- | --- | --- |"]
    lines += [f"| {number} | {title} | {why} |" for number, (title, why) in UNPROVED.items()]
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def still_needed(releases: dict[str, dict[str, Any]], number: int) -> str:
    """What a patch header says of a defect, by the newest release that was tried."""
    mine = [proof for proof in proofs() if proof.number == number]
    if not mine:
        return (
            f"no proof for releases: {UNPROVED[number][1]}" if number in UNPROVED else "not known"
        )
    return "; ".join(f"{proof.name} {since(releases, proof)}" for proof in mine)


def patched_by(number: int) -> str:
    """The patches that fix a defect here, or that it is open."""
    return ", ".join(patches().get(number, [])) or "open"
