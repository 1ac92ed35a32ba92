"""The release's source archive: fetching it with pip, checking it, unpacking it safely."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.machinery import PathFinder
from pathlib import Path, PurePosixPath
from typing import Callable

from dsmoe.common.errors import ArchiveProblem, EnvironmentProblem
from dsmoe.common.files import read_large
from dsmoe.common.places import another_place, work_folder
from dsmoe.common.typed import program
from dsmoe.patchset.base import Base

Say = Callable[[str], None]
#: pip tries an index that does not answer five times, and then the setup.py imports torch.
PIP_SECONDS = 900.0


def archive_cache() -> Path:
    """Where archives are kept: $DSMOE_ARCHIVE_DIR, or archives/ in the work folder (build/)."""
    given = os.environ.get("DSMOE_ARCHIVE_DIR")
    return Path(given) if given else work_folder() / "archives"


def fetch_archive(base: Base, cache: Path | None = None, say: Say = print) -> Path:
    """The checked archive of ``base``, from ``cache`` or else downloaded into it with pip.

    Raises:
        EnvironmentProblem: the folder ``cache`` cannot be made.
        ArchiveProblem: pip cannot fetch it, or its sha256 is not the pinned one.
    """
    cache = cache or archive_cache()
    name = str(base.release["archive"])
    target = cache / name
    if not target.is_file():
        _make(cache)
        say(f"fetching {name} with pip into {cache}")
        with tempfile.TemporaryDirectory(prefix="dsmoe-") as folder:
            _pip_download(base, Path(folder), target)
            fetched = Path(folder) / name
            if not fetched.is_file():
                raise ArchiveProblem(f"pip fetched no {name}; {_by_hand(target)}")
            check_archive(base, fetched)
            partial = cache / f".{name}.{os.getpid()}"
            shutil.copyfile(fetched, partial)
            partial.replace(target)
    check_archive(base, target)
    return target


def _make(cache: Path) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot make the folder {cache} for the release archive: {error.strerror}; expected "
            f"one that can be made: {_another_cache(cache)}"
        ) from None


def _another_cache(cache: Path) -> str:
    named = "name another one with DSMOE_ARCHIVE_DIR"
    return named if os.environ.get("DSMOE_ARCHIVE_DIR") else another_place(cache)


def _by_hand(target: Path) -> str:
    """What to do where pip does not help: the commands that train have no option for it."""
    return (
        f"expected a package index that has it, or a copy of it as {target}: put one there, or "
        f"{program('apply')} PATH --from-release --archive FILE"
    )


def _pip_download(base: Base, folder: Path, target: Path) -> None:
    what = f"{base.release['package']}=={base.release['version']}"
    flags = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    command = [sys.executable, "-m", "pip", "download", *flags, "-d", str(folder), what]
    missing = [name for name in ("pip", "torch", "setuptools", "wheel") if not importable(name)]
    if missing:
        raise ArchiveProblem(
            f"downloading {what} runs its setup.py, which needs {', '.join(missing)} in "
            f"{sys.executable}; install them; {_by_hand(target)}"
        )
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=str(folder),
            timeout=PIP_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise ArchiveProblem(
            f"pip did not download {what} within {PIP_SECONDS:g} s; {_by_hand(target)}"
        ) from None
    if done.returncode:
        lines = done.stdout.decode("utf-8", "replace").strip().splitlines()
        raise ArchiveProblem(
            f"pip could not download {what}, of which the DeepSpeed checkout is made (status "
            f"{done.returncode}; its words are below); {_by_hand(target)}",
            lines[-8:],
        )


def importable(name: str) -> bool:
    """Whether the package ``name`` lies on sys.path.

    Asks no other finder: asked for pip, setuptools' one gives its distutils up for the rest of this
    process, and whoever then imports setuptools fails.
    """
    return PathFinder.find_spec(name) is not None


def check_archive(base: Base, path: Path) -> None:
    """``ArchiveProblem`` unless ``path`` has the pinned sha256."""
    try:
        found = hashlib.sha256(read_large(path)).hexdigest()
    except OSError as error:
        raise ArchiveProblem(
            f"cannot read the archive {path}: {error.strerror}; expected "
            f"{base.release['archive']}: name it, or give no --archive and pip fetches it"
        ) from None
    if found != base.release["sha256"]:
        raise ArchiveProblem(
            f"{path} has sha256 {found}, expected {base.release['sha256']} "
            f"({base.release['archive']}); remove it and fetch it again"
        )


def unpack(archive: Path, folder: Path, root: str) -> None:
    """Unpack the files below ``root`` in ``archive`` into ``folder``, with modes 644 and 755.

    Raises:
        ArchiveProblem: a member is neither a plain file nor a folder, or lies outside ``root``.
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
