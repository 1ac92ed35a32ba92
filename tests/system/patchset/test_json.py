"""``--json`` prints one object, with the exit code in it."""

from __future__ import annotations

import json
from pathlib import Path

from support.patch_project import Project


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
        data = json.loads(text.split("\nerror: ")[0])  # what follows is standard error
        assert (found, data["outcome"], data["exit_code"]) == (code, outcome, code)
        assert data["message"]
