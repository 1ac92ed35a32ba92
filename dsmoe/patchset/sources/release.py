"""A checkout of the base from the release's source archive.

The archive differs from the repository in a few recorded ways (``release.steps`` in base.json).
They are undone, every recorded tree id is proved, and the tree is committed with a fixed author,
date and message, so that the commit id is the same on every machine. Blobs that the archive does
not hold enter the index by id alone and are marked skip-worktree.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from pathlib import Path
from typing import Any, Callable, Iterator

from dsmoe.common.errors import (
    ArchiveProblem,
    Busy,
    EnvironmentProblem,
    LocalChanges,
    NotACheckout,
    OtherBase,
    UsageError,
)
from dsmoe.common.places import another_place
from dsmoe.patchset.base import Base
from dsmoe.patchset.checkout.open import open_checkout
from dsmoe.patchset.git import Git
from dsmoe.patchset.sources.archive import check_archive, fetch_archive, unpack
from dsmoe.patchset.tree import index_info, read_tops

Say = Callable[[str], None]
BUILD_WAIT_SECONDS = 60.0

# Written to .git/info/exclude: the archive lacks the repository's .gitignore.
_EXCLUDE = "__pycache__/\n*.pyc\n*.pyo\n*.so\n*.egg-info/\n/build/\n/dist/\n"
_CONFIG = {
    "core.autocrlf": "false",
    "core.logAllRefUpdates": "false",
    "log.showRoot": "false",  # a root commit's diff would need the blobs that the archive lacks
}


def build_checkout(path: Path, base: Base, archive: Path | None = None, say: Say = print) -> bool:
    """Build the checkout of ``base`` at ``path``; False when one is there already.

    ``path`` must not exist or be an empty folder. The work is done in a hidden folder beside it,
    which is renamed at the end: after a kill nothing is at ``path``.

    Raises:
        LocalChanges: something else is at ``path``.
        ArchiveProblem: the archive cannot be had, is another one, or gives other trees.
        EnvironmentProblem: the file system refuses it.
    """
    named, path = path, Path(os.path.realpath(path))
    if not base.release:
        raise UsageError(f"base {base.name} has no release archive; clone {base.upstream} instead")
    if _is_there(path, base, say):
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot make the folder {path.parent}: {error.strerror}; {another_place(path)}"
        ) from None
    source = archive or fetch_archive(base, say=say)
    check_archive(base, source)
    try:
        with _building(path) as folder:
            if _is_there(path, base, say):  # another process was faster
                folder.rmdir()
                return False
            say(f"building {path} from {source.name} (sha256 as pinned)")
            unpack(source, folder, base.release["root"])
            commit = restore(folder, base)
            folder.rename(path)
    except OSError as error:  # of a file in a hidden folder, which the user did not name
        raise EnvironmentProblem(
            f"{named}: no DeepSpeed checkout can be built there: {error.strerror}; expected a "
            f"folder to write to, with room: {another_place(named)}"
        ) from error
    say(f"all recorded tree ids hold; HEAD is {commit}")
    for step in base.release["steps"]:
        if step["do"] == "index-only":
            say(f"not in the archive, so in the index by id alone: {step['path']}")
    return True


def _is_there(path: Path, base: Base, say: Say) -> bool:
    if not os.path.lexists(path) or (path.is_dir() and not any(path.iterdir())):
        return False
    try:
        checkout = open_checkout(path, [base])
    except (NotACheckout, OtherBase) as error:
        raise LocalChanges(
            f"{path} exists and is neither empty nor a checkout of {base.name}; "
            f"choose another path ({str(error).split(';')[0]})"
        ) from None
    say(f"{path} is already a checkout of {base.name} ({checkout.label}); not built again")
    return True


@contextlib.contextmanager
def _building(path: Path) -> Iterator[Path]:
    """A locked, empty folder beside ``path``; what a killed run left in it is cleared."""
    folder = path.parent / f".{path.name}.building"
    deadline = time.monotonic() + BUILD_WAIT_SECONDS
    while True:
        folder.mkdir(exist_ok=True)
        handle = os.open(str(folder), os.O_RDONLY)
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The folder may have been renamed to PATH by another process since we opened it.
            if folder.stat().st_ino == os.fstat(handle).st_ino:
                break
        os.close(handle)
        if time.monotonic() > deadline:
            raise Busy(f"another process still builds {path}; wait for it to end, then repeat")
        time.sleep(0.05)
    try:
        _clear(folder)
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(handle)


def _clear(folder: Path) -> None:
    for item in folder.iterdir():
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        else:
            item.unlink()


def restore(folder: Path, base: Base) -> str:
    """Undo the archive's differences, prove the trees, commit; the commit id.

    Raises:
        ArchiveProblem: a step finds nothing to do, or a tree or the commit id is another.
    """
    absent = _run_steps(folder, base.release["steps"])
    git = Git(folder, trusted=True)
    git.run("init", "-q", "--template=", ".")
    for key, value in _CONFIG.items():
        git.run("config", key, value)
    (folder / ".git" / "info").mkdir(exist_ok=True)
    (folder / ".git" / "info" / "exclude").write_text(_EXCLUDE, encoding="utf-8")
    git.run("add", "-A", "-f", ".")
    if absent:
        entries = {path: (step["mode"], step["blob"]) for path, step in absent.items()}
        git.run("update-index", "-z", "--index-info", stdin=index_info(entries))
        args = ("update-index", "--skip-worktree", "-z", "--stdin")
        git.run(*args, stdin=os.fsencode("".join(f"{path}\0" for path in absent)))
    tree = git.run("write-tree", "--missing-ok").text
    found = read_tops(git, tree)
    wrong = [
        f"{top}/ is {found.get(top, 'missing')}, expected {oid}"
        for top, oid in base.trees.items()
        if found.get(top) != oid
    ]
    if wrong:
        raise ArchiveProblem(
            f"{base.release['archive']} does not give the trees of the base", wrong
        )
    commit = _commit(git, tree, base)
    expected = base.release.get("commit_id")
    if expected and commit != expected:
        raise ArchiveProblem(f"the commit made from the archive is {commit}, expected {expected}")
    if absent:
        _declare_partial(git, base)
    return commit


def _declare_partial(git: Git, base: Base) -> None:
    """Make it a partial clone of upstream, which lacks the absent blobs and may fetch them.

    So ``git gc``, ``fsck`` and ``commit`` know that these blobs are missing on purpose.
    """
    args = ("rev-list", "--objects", "--no-object-names", "--missing=allow-any", "HEAD")
    objects = git.run(*args).out
    missing = {step["blob"] for step in base.release["steps"] if step["do"] == "index-only"}
    present = [oid for oid in objects.decode().split() if oid not in missing]
    pack = git.run(
        "pack-objects", "-q", ".git/objects/pack/pack", stdin="\n".join(present).encode()
    ).text
    (git.path / ".git" / "objects" / "pack" / f"pack-{pack}.promisor").touch()
    git.run("prune-packed", "-q")
    for key, value in (
        ("remote.upstream.url", base.upstream),
        ("remote.upstream.fetch", "+refs/heads/*:refs/remotes/upstream/*"),
        ("remote.upstream.promisor", "true"),
        ("remote.upstream.partialclonefilter", "blob:none"),
        ("core.repositoryFormatVersion", "1"),
        ("extensions.partialClone", "upstream"),
    ):
        git.run("config", key, value)


def _run_steps(folder: Path, steps: list[dict[str, str]]) -> dict[str, dict[str, str]]:
    absent: dict[str, dict[str, str]] = {}
    for step in steps:
        target = folder / step["path"]
        if step["do"] == "remove":
            _remove(target)
        elif step["do"] == "link":
            _remove(target)
            target.symlink_to(step["target"])
        elif step["do"] == "index-only":
            absent[step["path"]] = step
        else:
            raise UsageError(f"base.json: unknown release step {step['do']!r}")
    return absent


def _remove(target: Path) -> None:
    if not os.path.lexists(target):
        raise ArchiveProblem(f"the archive has no {target.name}, which the base expects to replace")
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink()


def _commit(git: Git, tree: str, base: Base) -> str:
    who: dict[str, Any] = base.release["commit"]
    env = {}
    for role in ("AUTHOR", "COMMITTER"):
        env[f"GIT_{role}_NAME"] = who["name"]
        env[f"GIT_{role}_EMAIL"] = who["email"]
        env[f"GIT_{role}_DATE"] = who["date"]
    args = ("-c", "i18n.commitEncoding=UTF-8", "commit-tree", tree)
    commit = git.run(*args, stdin=who["message"].encode() + b"\n", env=env).text
    git.run("symbolic-ref", "HEAD", f"refs/heads/{base.name}")
    git.run("update-ref", "HEAD", commit)
    return commit
