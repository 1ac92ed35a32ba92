"""``dsmoe defects``: the defects that the patches fix, and which of them another DeepSpeed has."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from dsmoe.common.arguments import OneLineParser, add_json
from dsmoe.common.errors import UsageError, exit_code_lines

NEEDS = ("git",)

EXAMPLES = """examples:
  dsmoe defects                                  # every defect and its patch
  dsmoe defects --against venv/bin/python        # which of them that DeepSpeed has
  dsmoe defects --against venv --only 29,37      # two of them
  dsmoe defects --against venv --record          # keep the verdicts of a release
  dsmoe defects --bisect environments            # which release fixed a defect
  dsmoe defects --write-docs                     # the page of all releases

A proof lives, is fixed, not applicable, or could not run, which says nothing
about the defect.

"""


def make_parser(prog: str) -> OneLineParser:
    """The options of the command."""
    parser = OneLineParser(
        prog=prog,
        description="Lists the defects that the patches fix. With --against it runs each "
        "defect's proof\nin another Python, through the public interface of its DeepSpeed.",
        epilog=EXAMPLES + exit_code_lines("defects"),
    )
    parser.add_argument(
        "--against",
        metavar="PYTHON",
        help="This Python, or virtual environment, has the DeepSpeed to judge.",
    )
    parser.add_argument(
        "--only", metavar="N,N", help="Only these defects, by number, or a proof's name."
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=180.0,
        metavar="S",
        help="A proof may take S seconds (default: 180).",
    )
    parser.add_argument(
        "--record", action="store_true", help="The verdicts are kept for the release's page."
    )
    parser.add_argument(
        "--bisect",
        metavar="FOLDER",
        help="FOLDER has environments named by their releases. Those between the last release with "
        "a defect and the first without are judged, and the verdicts are kept.",
    )
    parser.add_argument(
        "--write-docs",
        action="store_true",
        help="docs/reference/defects-by-release.md is written from what was kept.",
    )
    add_json(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """List, judge or write; 1 if a proof could not run. Raises DsmoeError."""
    from dsmoe.defects import listing, releases

    if not 1 <= options.limit <= 3600:
        raise UsageError(f"--limit: found {options.limit:g}, expected 1 to 3600 seconds")
    if options.record and not options.against:
        raise UsageError("--record: expected --against PYTHON beside it")
    if options.bisect and (options.against or options.json):
        raise UsageError("--bisect: expected neither --against nor --json beside it")
    chosen = _choose(options.only, listing.proofs())
    code = 0
    if options.against:
        code = _judge(options, chosen)
    elif options.bisect:
        _bisect(options, chosen)
    elif not options.write_docs:
        _list(options)
    if options.write_docs:
        from dsmoe.common.files import write_atomically
        from dsmoe.common.places import project_root
        from dsmoe.defects.page import PAGE
        from dsmoe.defects.page import page as made

        page = project_root() / PAGE
        write_atomically(page, made(releases.read()).encode())
        print(f"wrote {page}", file=sys.stderr if options.json else sys.stdout)
    return code


def _choose(only: str | None, found: list[Any]) -> list[Any]:
    if only is None:
        return found
    words = [word for word in only.replace(",", " ").split() if word]
    chosen = [proof for proof in found if {str(proof.number), proof.name} & set(words)]
    known = {str(proof.number) for proof in found} | {proof.name for proof in found}
    for word in words or [only]:
        if word not in known:
            raise UsageError(f"--only: found {word!r}, expected a defect that has a proof")
    return chosen


def _judge(options: argparse.Namespace, chosen: list[Any]) -> int:
    from dsmoe.defects import against, releases

    python = against.find_python(options.against)

    def say(proof: Any, verdict: dict[str, Any]) -> None:
        if options.json:
            return
        print(f"{proof.number:>3}  {verdict['state']:<14}  {proof.title}  ({verdict['seconds']} s)")
        if "seen" in verdict:
            print(f"     seen: {verdict['seen']}\n     right: {verdict['right']}")
        else:
            print(f"     {verdict['reason']}")
        print(f"     {verdict['command'].replace('PYTHON', str(python))}", flush=True)

    versions, verdicts = against.run_proofs(python, chosen, options.limit, say)
    if options.record:
        releases.record(versions, verdicts)
    states = [verdict["state"] for verdict in verdicts.values()]
    counts = {state: states.count(state) for state in against.STATES}
    if options.json:
        print(json.dumps({"versions": versions, "verdicts": verdicts, "counts": counts}))
    else:
        counted = ", ".join(f"{number} {state}" for state, number in counts.items())
        print(f"DeepSpeed {versions['deepspeed']}, torch {versions['torch']}: {counted}")
    return 1 if counts[against.FAILED] else 0


def _bisect(options: argparse.Namespace, chosen: list[Any]) -> None:
    from dsmoe.common.errors import EnvironmentProblem
    from dsmoe.defects import against, narrow, releases

    pythons = narrow.environments(options.bisect)

    def say(proof: Any, verdict: dict[str, Any]) -> None:
        print(f"{proof.number:>3}  {verdict['state']:<14}  {proof.name}", flush=True)

    def judge(release: str, proofs: list[Any]) -> None:
        print(f"{release}: {len(proofs)} proof(s)", flush=True)
        try:
            found = against.run_proofs(pythons[release], proofs, options.limit, say)
        except EnvironmentProblem as problem:
            print(f"{release} is left out: {problem}", flush=True)
            return
        releases.record(*found)

    for _ in narrow.steps(releases.read, list(pythons), chosen, judge):
        pass
    known = releases.read()
    for proof in chosen:
        if releases.bounds(known, proof):
            print(f"{proof.number:>3}  {proof.title}: {releases.since(known, proof)}")


def _list(options: argparse.Namespace) -> None:
    from dsmoe.defects import listing, releases
    from dsmoe.defects.unproved import UNPROVED

    known, by_number = releases.read(), listing.patches()
    rows: list[dict[str, Any]] = []
    for proof in listing.proofs():
        rows.append(
            {
                "number": proof.number,
                "title": proof.title,
                "patches": by_number.get(proof.number, []),
                "proof": proof.name,
                "state": releases.since(known, proof),
            }
        )
    for number, (title, why) in UNPROVED.items():
        patched = by_number.get(number, [])
        rows.append(
            {"number": number, "title": title, "patches": patched, "proof": None, "state": why}
        )
    rows.sort(key=lambda row: row["number"])
    if options.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(f"{row['number']:>3}  {row['title']}")
        print(f"     here: {', '.join(row['patches']) or 'open'}")
        print(f"     releases: {row['state']}")
