"""A checkout of the base from the release's source archive.

The archive differs from the repository in a few recorded ways (``release.steps`` in base.json).
They are undone, every recorded tree id is proved, and the tree is committed with a fixed author,
date and message, so that the commit id is the same on every machine. Blobs that the archive does
not hold enter the index by id alone and are marked skip-worktree.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path, PurePosixPath
from typing import Any, Callable, Iterator

from dsmoe.patchset.base import Base, project_root
from dsmoe.patchset.checkout import open_checkout
from dsmoe.patchset.errors import (
    ArchiveProblem,
    Busy,
    EnvironmentProblem,
    LocalChanges,
    NotACheckout,
    OtherBase,
    UsageError,
)
from dsmoe.patchset.git import Git
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


def archive_cache() -> Path:
    """Where archives are kept: $DSMOE_ARCHIVE_DIR, or build/archives/ in the project."""
    given = os.environ.get("DSMOE_ARCHIVE_DIR")
    return Path(given) if given else project_root() / "build" / "archives"


def fetch_archive(base: Base, cache: Path | None = None, say: Say = print) -> Path:
    """The checked archive of ``base``, from ``cache`` or else downloaded into it with pip.

    Raises:
        ArchiveProblem: pip cannot fetch it, or its sha256 is not the pinned one.
    """
    cache = cache or archive_cache()
    name = base.release["archive"]
    target = cache / name
    if not target.is_file():
        say(f"fetching {name} with pip into {cache}")
        with tempfile.TemporaryDirectory(prefix="dsmoe-") as folder:
            _pip_download(base, Path(folder))
            fetched = Path(folder) / name
            if not fetched.is_file():
                raise ArchiveProblem(f"pip fetched no {name}; pass a local copy with --archive")
            check_archive(base, fetched)
            cache.mkdir(parents=True, exist_ok=True)
            partial = cache / f".{name}.{os.getpid()}"
            shutil.copyfile(fetched, partial)
            partial.replace(target)
    check_archive(base, target)
    return target


def _pip_download(base: Base, folder: Path) -> None:
    what = f"{base.release['package']}=={base.release['version']}"
    flags = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    command = [sys.executable, "-m", "pip", "download", *flags, "-d", str(folder), what]
    missing = [name for name in ("pip", "torch", "setuptools", "wheel") if not _importable(name)]
    if missing:
        raise ArchiveProblem(
            f"downloading {what} runs its setup.py, which needs {', '.join(missing)} in "
            f"{sys.executable}; install them, or pass a local copy with --archive"
        )
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=str(folder)
    )
    if done.returncode:
        lines = done.stdout.decode("utf-8", "replace").strip().splitlines()
        raise ArchiveProblem(
            f"pip could not download {what} (status {done.returncode}); "
            "pass a local copy with --archive",
            lines[-8:],
        )


def _importable(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def check_archive(base: Base, path: Path) -> None:
    """``ArchiveProblem`` unless ``path`` has the pinned sha256."""
    total = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                total.update(block)
    except OSError as error:
        raise ArchiveProblem(f"cannot read the archive {path}: {error.strerror}") from None
    if total.hexdigest() != base.release["sha256"]:
        raise ArchiveProblem(
            f"{path} has sha256 {total.hexdigest()}, expected {base.release['sha256']} "
            f"({base.release['archive']}); remove it and fetch it again"
        )


def build_checkout(path: Path, base: Base, archive: Path | None = None, say: Say = print) -> bool:
    """Build the checkout of ``base`` at ``path``; False when one is there already.

    ``path`` must not exist or be an empty folder. The work is done in a hidden folder beside it
    and renamed at the end: a kill leaves nothing at ``path``.

    Raises:
        LocalChanges: something else is at ``path``.
        ArchiveProblem: the archive cannot be had, is another one, or gives other trees.
    """
    path = Path(os.path.realpath(path))
    if not base.release:
        raise UsageError(f"base {base.name} has no release archive; clone {base.upstream} instead")
    if _is_there(path, base, say):
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot make the folder {path.parent}: {error.strerror}; choose another path"
        ) from None
    source = archive or fetch_archive(base, say=say)
    check_archive(base, source)
    with _building(path) as folder:
        if _is_there(path, base, say):  # another process was faster
            folder.rmdir()
            return False
        say(f"building {path} from {source.name} (sha256 as pinned)")
        unpack(source, folder, base.release["root"])
        commit = restore(folder, base)
        try:
            folder.rename(path)
        except OSError as error:
            raise EnvironmentProblem(
                f"cannot rename {folder} to {path}: {error.strerror}; choose another path"
            ) from None
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


def unpack(archive: Path, folder: Path, root: str) -> None:
    """Unpack the files below ``root`` in ``archive`` into ``folder``, with modes 644 and 755.

    Raises:
        ArchiveProblem: a member is no plain file or folder, or lies outside ``root``.
    """
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                target = folder / _safe_name(member, root)
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                content = tar.extractfile(member)
                if content is None:
                    raise ArchiveProblem(f"{archive}: {member.name} cannot be read")
                with target.open("xb") as stream:
                    shutil.copyfileobj(content, stream)
                target.chmod(0o755 if member.mode & 0o100 else 0o644)
    except (tarfile.TarError, EOFError, FileExistsError) as error:
        raise ArchiveProblem(f"{archive} cannot be unpacked: {error}") from None


def _safe_name(member: tarfile.TarInfo, root: str) -> Path:
    parts = PurePosixPath(member.name).parts
    if not (member.isfile() or member.isdir()):
        raise ArchiveProblem(f"the archive holds {member.name!r}, neither a file nor a folder")
    outside = member.name.startswith("/") or "\\" in member.name or ".." in parts
    if outside or not parts or parts[0] != root or ".git" in parts:
        raise ArchiveProblem(f"the archive holds {member.name!r}, outside of {root}/")
    return Path(*parts[1:])


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


__all__ = [
    "EnvironmentProblem",
    "archive_cache",
    "build_checkout",
    "check_archive",
    "fetch_archive",
    "restore",
    "unpack",
]
