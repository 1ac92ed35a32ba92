"""A second base for the synthetic project."""

from __future__ import annotations

import json
from pathlib import Path

from support.patch_project import Project, git, steps, sub, write_files


def other_base(project: Project, path: Path, edits: dict[str, tuple[bytes, bytes]]) -> Path:
    """A clone whose HEAD differs by ``edits``, known to the project as the base "other"."""
    checkout = project.clone(path)
    files = steps()[0]
    for name, (old, new) in edits.items():
        sub(files, name, old, new)
    write_files(checkout, files)
    git(checkout, "commit", "-q", "-a", "-m", "other")
    head = git(checkout, "rev-parse", "HEAD")
    folder = project.root / "bases/other"
    folder.mkdir()
    base = json.loads((project.root / "bases/syn/base.json").read_text())
    base.update(name="other", commit=head, commits=[{"id": head, "label": "a clone"}])
    base.update(series="series")
    base["trees"] = {top: git(checkout, "rev-parse", f"HEAD:{top}") for top in ("lib", "bin")}
    (folder / "base.json").write_text(json.dumps(base))
    return checkout
