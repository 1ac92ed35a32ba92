"""The result of a series on a base, built in the object database alone.

No patch is fuzzed or moved: the blob ids in its ``index`` lines must be those that the base and
the patches before it give, and every patch that does not fit is reported, not the first alone.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from dsmoe.common.errors import ResultMismatch, SeriesBroken
from dsmoe.common.files import write_atomically
from dsmoe.patchset.checkout.open import Checkout
from dsmoe.patchset.git import Git
from dsmoe.patchset.series import FileDiff, Patch, Series, overlay_content, overlay_mode
from dsmoe.patchset.tree import Change, Entries, diff_trees, index_info, read_tops, read_tree

_FAILED = re.compile(r"^error: patch failed: (.*):(\d+)$")
_FILE_ERROR = re.compile(r"^error: (.*?): (.*)$")


@dataclass(frozen=True)
class Built:
    """A result: its root tree, what it changes, and the ids of the top folders it touches."""

    tree: str
    base_entries: Entries
    changes: dict[str, Change]
    tops: dict[str, str]
    digest: str


def build(git: Git, checkout: Checkout, series: Series) -> Built:
    """Apply ``series`` to HEAD's tree in the temporary index of ``git``.

    Raises:
        SeriesBroken: with one detail line a patch, file and hunk that does not fit.
    """
    base_entries = read_tree(git, checkout.tree)
    git.run("read-tree", checkout.tree)
    problems: list[str] = []
    state: dict[str, str | None] = {path: entry[1] for path, entry in base_entries.items()}
    broken: dict[str, str] = {}
    for patch in series.patches:
        problems += _apply_one(git, patch, state, broken)
    problems += _add_overlay(git, series, base_entries, state)
    if problems:
        raise SeriesBroken(
            f"the series {series.base.series} does not fit {checkout.base.name}: "
            f"{len(problems)} problems, nothing was changed",
            problems,
        )
    tree = git.run("write-tree", "--missing-ok").text
    changes = diff_trees(git, checkout.tree, tree)
    touched = {path.split("/")[0] for path in changes}
    for top in sorted(touched):
        if top in checkout.tops and top not in series.base.trees:
            problems.append(f"{top}: base.json records no id for this top-level entry")
    if problems:
        raise SeriesBroken("the series touches what the base does not pin", problems)
    tops = {top: oid for top, oid in read_tops(git, tree).items() if top in touched}
    return Built(tree, base_entries, changes, tops, series.digest)


def _apply_one(
    git: Git, patch: Patch, state: dict[str, str | None], broken: dict[str, str]
) -> list[str]:
    if not patch.files:
        return [f"{patch.name}: holds no diff"]
    problems = _chain_problems(patch, state, broken)
    args = ("apply", "--cached", "--whitespace=nowarn")
    result = git.run(*args, str(patch.path), ok=(0, 1, 128))
    if result.status:
        failed = _failed_hunks(patch, result.err, broken)
        problems = failed or problems + [f"{patch.name}: {' '.join(result.err.split())}"]
        bad = {item.path for item in patch.files if f"{item.path}:" in result.err}
        # The files that do fit still go in, so that later patches are judged fairly.
        skip = [f"--exclude={_glob_escape(path)}" for path in sorted(bad)]
        if bad and len(bad) < len(patch.files):
            git.run(*args, *skip, str(patch.path), ok=(0, 1, 128))
        broken.update({path: patch.name for path in bad if path not in broken})
    for item in patch.files:
        if item.new_id is not None or item.old_id is not None:
            state[item.path] = item.new_id
    return problems


def _chain_problems(
    patch: Patch, state: dict[str, str | None], broken: dict[str, str]
) -> list[str]:
    problems = []
    for item in patch.files:
        found = state.get(item.path)
        mode_only = item.old_id is None and item.new_id is None
        if mode_only or found == item.old_id or item.path in broken:
            continue
        problems.append(
            f"{patch.name}: {item.path}: made for blob {item.old_id or 'none'}, "
            f"but there it is {found or 'missing'}"
        )
    return problems


def _failed_hunks(patch: Patch, err: str, broken: dict[str, str]) -> list[str]:
    by_path: dict[str, FileDiff] = {item.path: item for item in patch.files}
    problems: dict[str, str] = {}
    for line in err.splitlines():
        hunk, other = _FAILED.match(line), _FILE_ERROR.match(line)
        if hunk and hunk.group(1) in by_path:
            path, start = hunk.group(1), int(hunk.group(2))
            starts = [item.old_start for item in by_path[path].hunks]
            number = starts.index(start) + 1 if start in starts else 0
            where = f"hunk {number} of {len(starts)}" if number else "a hunk"
            problems[path] = f"{patch.name}: {path}: {where} (line {start}) does not apply"
        elif other and other.group(1) in by_path and other.group(1) not in problems:
            problems[other.group(1)] = f"{patch.name}: {other.group(1)}: {other.group(2)}"
    return [
        text + (f" (perhaps since {broken[path]} failed there)" if path in broken else "")
        for path, text in problems.items()
    ]


def _glob_escape(path: str) -> str:
    return re.sub(r"([*?\[\]\\])", r"\\\1", path)


def _add_overlay(
    git: Git, series: Series, base: Entries, state: dict[str, str | None]
) -> list[str]:
    patched = {item.path for patch in series.patches for item in patch.files}
    problems, plain, entries = [], [], {}
    for path, source in series.overlay.items():
        if path in base or path in patched:
            owner = "DeepSpeed's own file" if path in base else "a file of a patch"
            problems.append(f"overlay {path}: would replace {owner}; make it a patch")
        elif any(part in state and state[part] for part in _parents(path)):
            problems.append(f"overlay {path}: a file stands where it needs a folder")
        elif source.is_symlink():
            oid = git.run("hash-object", "-w", "--stdin", stdin=overlay_content(source)).text
            entries[path] = ("120000", oid)
        else:
            plain.append(path)
    if plain:
        names = "".join(f"{series.overlay[path]}\n" for path in plain).encode(
            "utf-8", "surrogateescape"
        )
        args = ("hash-object", "-w", "--no-filters", "--stdin-paths")
        ids = git.run(*args, stdin=names).text.split()
        for path, oid in zip(plain, ids):
            entries[path] = (overlay_mode(series.overlay[path]), oid)
    if entries and not problems:
        git.run("update-index", "-z", "--index-info", stdin=index_info(entries))
    return problems


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def lock_content(series: Series, built: Built) -> bytes:
    """The bytes of result.json: the ids that every machine must get."""
    data = {
        "base": series.base.name,
        "series": built.digest,
        "trees": dict(sorted(built.tops.items())),
    }
    return (json.dumps(data, indent=2) + "\n").encode()


def write_lock(series: Series, built: Built) -> bool:
    """Write result.json; whether it changed."""
    return write_atomically(series.base.result_file, lock_content(series, built))


def check_lock(series: Series, built: Built, path: Path) -> None:
    """Compare with result.json; ``ResultMismatch`` names what differs."""
    file = series.base.result_file
    remedy = f"if patch/ or overlay/ was edited on purpose: python apply_patch.py {path} --lock"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        locked, digest = dict(data["trees"]), str(data["series"])
    except FileNotFoundError:
        raise ResultMismatch(f"{file} is missing: no result is locked; {remedy}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultMismatch(f"{file} cannot be read ({error!r}); {remedy}") from None
    details = [
        f"{top}/ would be {built.tops.get(top, 'untouched')}, locked is {locked.get(top, 'none')}"
        for top in sorted(set(locked) | set(built.tops))
        if built.tops.get(top) != locked.get(top)
    ]
    if digest != series.digest:
        raise ResultMismatch(
            f"patch/ and overlay/ are not those locked in {file} "
            f"(digest {series.digest[:12]}, locked {digest[:12]}); {remedy}",
            details,
        )
    if details:
        raise ResultMismatch(f"the built result is not the one locked in {file}", details)
