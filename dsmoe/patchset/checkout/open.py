"""Finding out what stands at a path: which repository, which commit, which base."""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Sequence

from dsmoe.common.errors import NotACheckout, OtherBase
from dsmoe.common.typed import program
from dsmoe.patchset.base import Base
from dsmoe.patchset.git import Git, damaged
from dsmoe.patchset.locked_result import read_result
from dsmoe.patchset.tree import read_tops


@dataclass(frozen=True)
class Checkout:
    """A work tree whose HEAD is a known base.

    ``label`` says which kind (a clone, the release archive); ``head`` and ``tree`` are the ids
    of HEAD and its root tree, ``tops`` those of the root tree's entries. ``committed`` says that
    HEAD is a commit of the applied series: its trees are the locked result, not the base's.
    """

    path: Path
    git_dir: Path
    objects: Path
    base: Base
    label: str
    head: str
    tree: str
    tops: dict[str, str]
    git: Git
    committed: bool = False

    @property
    def private(self) -> Path:
        """Our own folder in the git folder of this work tree: lock and records."""
        return self.git_dir / "dsmoe"


def open_checkout(path: Path, bases: Sequence[Base]) -> Checkout:
    """Identify the checkout at ``path``.

    Raises:
        NotACheckout: nothing there, no repository, a bare one, or not its top folder.
        OtherBase: a repository whose HEAD is none of ``bases``.
    """
    path = Path.cwd() / path
    wanted = bases[0]
    remedy = f"{program('apply')} {path} --from-release builds one"
    if not _is_folder(path):
        if os.path.lexists(path):
            raise NotACheckout(
                f"{path} is not a folder; expected a git checkout of DeepSpeed: name its top folder"
            )
        raise NotACheckout(f"{path} does not exist; expected a git checkout of DeepSpeed; {remedy}")
    git = _open_git(path, remedy)
    out = git.run(
        "rev-parse",
        "--is-bare-repository",
        "--is-inside-git-dir",
        "--absolute-git-dir",
        "--git-path",
        "objects",
    ).text.split("\n")
    if out[0] == "true" or out[1] == "true":
        raise NotACheckout(
            f"{path} is a bare repository or a git folder; expected a work tree: "
            f"git clone {path} DeepSpeed, then pass that folder"
        )
    top = Path(git.run("rev-parse", "--show-toplevel").text)
    if os.path.realpath(top) != os.path.realpath(path):
        raise NotACheckout(
            f"{path} is a folder inside the repository {top}, not a checkout's top folder; "
            f"pass the top folder of a DeepSpeed checkout; {remedy}"
        )
    head = git.run("rev-parse", "--verify", "-q", "HEAD^{commit}", ok=(0, 1, 128))
    if head.status:
        if git.run("rev-parse", "--verify", "-q", "HEAD", ok=(0, 1, 128)).status == 0:
            raise damaged(path, "HEAD names a commit that is not there")
        raise OtherBase(
            f"{path} has no commit yet; expected HEAD at {wanted.commit} ({wanted.name}); {remedy}"
        )
    tree = git.run("rev-parse", "--verify", "HEAD^{tree}").text
    tops = read_tops(git, tree)
    for base in bases:
        label = base.commits.get(head.text)
        if label is None and all(tops.get(top) == oid for top, oid in base.trees.items()):
            label = "the same trees under another commit"
        committed = label is None and _is_committed(base, tops)
        if committed:
            label = "the applied series, committed"
        if label is not None:
            return Checkout(
                path,
                git_dir=Path(out[2]),
                objects=_absolute(path, out[3]),
                base=base,
                label=label,
                head=head.text,
                tree=tree,
                tops=tops,
                git=git,
                committed=committed,
            )
    raise OtherBase(_other_base(git, head.text, bases), _tree_lines(tops, wanted))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:  # a name that is too long, a folder that is closed to us
        raise NotACheckout(
            f"{str(path)[:300]} cannot be looked at: {error.strerror}; expected a git checkout of "
            "DeepSpeed that you can read"
        ) from None


def _is_committed(base: Base, tops: dict[str, str]) -> bool:
    """Whether ``tops`` are those of the locked result of ``base``."""
    try:
        locked, _ = read_result(base)
    except (OSError, ValueError):
        return False
    wanted = {**base.trees, **locked}
    return bool(locked) and all(tops.get(top) == oid for top, oid in wanted.items())


def need_base(checkout: Checkout) -> None:
    """``OtherBase`` when HEAD is a commit of the applied series: there is no base to start from."""
    if not checkout.committed:
        return
    git, base = checkout.git, checkout.base
    there = [commit for commit in base.commits if git.has(commit)]
    path, commit = checkout.path, (there or [base.commit])[0]
    raise OtherBase(
        f"HEAD of {path} is {checkout.head}, a commit of the applied series; this command needs "
        f"HEAD at the base: git -C {path} reset --soft {commit} takes the commit back and keeps "
        "every file; then repeat"
    )


def _open_git(path: Path, remedy: str) -> Git:
    # The only commands under the user's own configuration: it alone says whether the user
    # trusts a repository that belongs to somebody else, and which files the user ignores.
    git = Git(path)
    probe = git.run("rev-parse", "--git-dir", ok=(0, 128), neutral=False)
    if probe.status == 0:
        found = git.run("config", "--path", "core.excludesFile", ok=(0, 1), neutral=False)
        return git.using(trusted=True, excludes=found.text if found.status == 0 else None)
    if "dubious ownership" in probe.err or "unsafe repository" in probe.err:
        raise NotACheckout(
            f"git does not trust {path}, which belongs to another user; if you do: "
            f"git config --global --add safe.directory {path}"
        )
    words = " ".join(probe.err.split())
    raise NotACheckout(f"{path} is not a git checkout ({words}); {remedy}")


def _absolute(path: Path, text: str) -> Path:
    return Path(os.path.normpath(path / text))


def _other_base(git: Git, head: str, bases: Sequence[Base]) -> str:
    wanted = bases[0]
    if not set(wanted.trees) & set(read_tops(git, head + "^{tree}")):
        folders = ", ".join(f"{top}/" for top in wanted.trees)
        return (
            f"{git.path} is not a checkout of DeepSpeed (HEAD {head} has none of {folders}); "
            f"expected a clone of {wanted.upstream} at {wanted.commit}, or a new folder with "
            "--from-release"
        )
    there = [commit for commit in wanted.commits if git.has(commit)]
    fix = f"git -C {git.path} checkout {(there or [wanted.commit])[0]}"
    if not there:
        fix = f"git -C {git.path} fetch {wanted.upstream} {wanted.commit} && {fix}"
    names = " or ".join(f"{base.commit} ({base.name})" for base in bases)
    return f"HEAD of {git.path} is {head}, expected {names}; to get it: {fix}"


def _tree_lines(tops: dict[str, str], base: Base) -> Sequence[str]:
    return [
        f"{top}/ is {tops.get(top, 'missing')}, expected {oid} ({base.name})"
        for top, oid in base.trees.items()
        if tops.get(top) != oid
    ]


@contextlib.contextmanager
def workspace(checkout: Checkout, dry: bool) -> Iterator[Git]:
    """git with a temporary index; with ``dry`` new objects go to a temporary folder too."""
    with tempfile.TemporaryDirectory(prefix="dsmoe-") as folder:
        git = checkout.git.using(index=Path(folder) / "index")
        if dry:
            objects = Path(folder) / "objects"
            objects.mkdir()
            git = git.using(objects=objects, alternates=checkout.objects)
        yield git
