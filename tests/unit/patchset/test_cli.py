"""The command line: help, exit codes, JSON, and the table in the manual."""

from __future__ import annotations

import json
import re
from pathlib import Path

from support.patch_project import ROOT, Project

from dsmoe.commands.apply import make_parser
from dsmoe.common import errors
from dsmoe.common import errors as common
from dsmoe.patchset.checkout.state import EXIT_CODES as STATES


def test_every_failure_has_a_documented_code() -> None:
    codes = dict(errors.EXIT_CODES)
    kinds = [
        kind
        for kind in [*vars(errors).values(), *vars(common).values()]
        if isinstance(kind, type) and issubclass(kind, common.DsmoeError)
    ]
    assert len(kinds) > 10
    assert {kind.exit_code for kind in kinds} <= set(codes)
    assert set(STATES.values()) <= set(codes)
    # One code a failure: no two classes share one, but for the common base classes.
    own = [kind.exit_code for kind in set(kinds) if kind.exit_code != 1]
    assert len(own) == len(set(own))


def test_help_and_manual_list_the_codes() -> None:
    text = make_parser().format_help()
    manual = (ROOT / "docs/reference/applying.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\d+) \| (.*?) \|$", manual, re.MULTILINE))
    assert rows == {str(code): words for code, words in errors.EXIT_CODES.items()}
    for code, words in errors.EXIT_CODES:
        assert f"  {code:<4} {words}" in text
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert options <= set(re.findall(r"--[a-z][a-z-]+", manual))


def test_json_is_one_object(template: Project, checkout: Path, tmp_path: Path) -> None:
    for path, args, outcome, code in (
        (checkout, ["--check"], "would-apply", 0),
        (checkout, [], "applied", 0),
        (checkout, [], "already-applied", 0),
        (checkout, ["--export"], "nothing-to-export", 0),
        (checkout, ["--revert"], "reverted", 0),
        (checkout, ["--revert"], "already-pristine", 0),
        (tmp_path / "none", [], "failed", 3),
    ):
        found, text = template.main(path, "--json", *args)
        data = json.loads(text)
        assert (found, data["outcome"], data["exit_code"]) == (code, outcome, code)
        assert data["message"]
