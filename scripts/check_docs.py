#!/usr/bin/env python3
"""Check the text of every Markdown file: links, paths, commands and words.

    python scripts/check_docs.py       exit 1 and one line a problem

mkdocs checks the links inside docs/. This checks what mkdocs does not see: README.md and the other
files outside docs/, links that look external but lead to this machine, paths in code font and in
comments, module paths used as commands, and words that this project does not use.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Iterator

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
LOCAL = re.compile(r"(?:https?://(?:localhost|127\.0\.0\.1|0\.0\.0\.0)|file://)\S*")
# a path of this repository in code font; NAME and FILE are placeholders
PATH = re.compile(
    r"`((?:docs|dsmoe|scripts|tests|bases)/(?!\S*(?:NAME|FILE))[\w./-]+\.\w+)(?:::\w+)?`"
)
COMMENT_PATH = re.compile(r"docs/[\w/-]+\.(?:md|json|png)")
DEEP_COMMAND = re.compile(r"python3? -m dsmoe\.\w[\w.]*")
UNPLAIN = (
    r"mends?|mended|front doors?|in silence|without a word|left to slower|era stack|for its likes"
    r"|the base's own"
)
WORDS = re.compile(rf"\b({UNPLAIN}|brings? .{{0,30}} back)\b", re.IGNORECASE)
CODE_WORDS = re.compile(rf"\b({UNPLAIN})\b", re.IGNORECASE)  # code may bring a value back


def tracked(*patterns: str) -> list[Path]:
    command = ["git", "-C", str(ROOT), "ls-files", "--", *patterns]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    found = set()
    for line in path.read_text(encoding="utf-8").splitlines():
        if re.match(r"#{1,6} ", line):
            text = re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower())
            found.add(re.sub(r"[- ]+", "-", text.strip()))
    return found


def link_problems(path: Path, text: str) -> Iterator[str]:
    for target in LINK.findall(text):
        if re.match(r"(https?|mailto):", target):
            continue
        name, _, anchor = target.partition("#")
        place = (path.parent / name).resolve() if name else path
        if target.startswith("/") or not place.exists():
            yield f"the link {target} leads nowhere"
        elif anchor and place.suffix == ".md" and anchor not in anchors(place):
            yield f"the link {target} names a heading that is not there"
        elif path.is_relative_to(ROOT / "docs") and not place.is_relative_to(ROOT / "docs"):
            yield f"the link {target} leaves docs/, so the site does not have it: name the path"


def problems(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    yield from link_problems(path, text)
    for found in LOCAL.findall(text):
        yield f"{found} is an address of one machine"
    if path.name == "CHANGELOG.md":  # it names what is gone
        return
    for found in PATH.findall(text):
        if not (ROOT / found).exists():
            yield f"the path {found} is not there"
    for found in DEEP_COMMAND.findall(text):
        yield f"{found} is a module path; name the command: dsmoe ..."
    for found in WORDS.finditer(text):
        yield f"write {found[0]!r} in plain words"


def comment_problems(path: Path) -> Iterator[str]:
    """Pages that code names and that are not there, and words that are not plain."""
    text = path.read_text(encoding="utf-8", errors="replace")
    for found in COMMENT_PATH.findall(text):
        if not (ROOT / found).exists():
            yield f"names {found}, which is not there"
    if path.name not in ("check_docs.py", "test_docs.py"):  # they hold the words
        for word in CODE_WORDS.finditer(text):
            yield f"write {word[0]!r} in plain words"


def main() -> int:
    lines = []
    for path in tracked("*.md"):
        lines += [f"{path.relative_to(ROOT)}: {problem}" for problem in problems(path)]
    for path in tracked("*.py", "*.sh", "*.patch", "Makefile", "bases/*/series", "patch/series"):
        lines += [f"{path.relative_to(ROOT)}: {problem}" for problem in comment_problems(path)]
    print("\n".join(lines), file=sys.stderr, end="\n" if lines else "")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
