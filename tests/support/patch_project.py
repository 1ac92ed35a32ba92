"""A small synthetic base with every kind of file, its series, and the real base of the archive.

The synthetic upstream, the diffs and the expected result are made by plain git and plain file
writes, never by the code under test.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from dsmoe.cli import main
from dsmoe.patchset.base import Base, load_base
from support import ROOT

HEADER = b"""Description: change things (%d)
 and say why.
Origin: here
Forwarded: not-needed
Still-Needed: yes
X-Test: tests/system/patchset/test_apply.py::test_apply_gives_the_expected_bytes

"""

# path -> content; a str is a link's target; a name that ends in ".sh" is executable
BASE_FILES: dict[str, bytes | str] = {
    "lib/a.py": b"".join(b"line %d\n" % n for n in range(40)),
    "lib/crlf.py": b"".join(b"line %d\r\n" % n for n in range(12)),
    "lib/latin.txt": b"caf\xe9\nna\xefve\n\xff\xfe end without newline",
    "lib/data.bin": bytes(range(256)) * 3,
    "lib/old.py": b"gone soon\n",
    "lib/link": "a.py",
    "lib/run.sh": b"#!/bin/sh\necho one\n",
    "lib/with space \xe9.txt": b"one\ntwo\n",
    "bin/tool.sh": b"#!/bin/sh\necho tool\n",
    "docs/read.txt": b"not touched\n",
}


def sub(files: dict[str, bytes | str], path: str, old: bytes, new: bytes) -> None:
    """Replace in a file of ``files``; the old text must be there once."""
    content = files[path]
    assert isinstance(content, bytes) and content.count(old) == 1
    files[path] = content.replace(old, new)


def steps() -> list[dict[str, bytes | str]]:
    """The files on the base, after the first patch and after the second."""
    one = dict(BASE_FILES)
    sub(one, "lib/a.py", b"line 2\n", b"line 2 patched\n")
    sub(one, "lib/a.py", b"line 30\n", b"")
    sub(one, "lib/crlf.py", b"line 5\r\n", b"line 5\r\nline 5b\r\n")
    sub(one, "lib/latin.txt", b"na\xefve", b"na\xefve\xe9")
    two = dict(one)
    sub(two, "lib/a.py", b"line 2 patched\n", b"line 2 patched twice\n")
    sub(two, "lib/run.sh", b"one", b"two")
    two["lib/data.bin"] = bytes(reversed(range(256))) * 3
    two["lib/link"] = "crlf.py"
    del two["lib/old.py"]
    two["lib/with space \xe9.txt"] = b"one\nTWO\n"
    return [dict(BASE_FILES), one, two]


OVERLAY: dict[str, bytes | str] = {
    "lib/new/deep/x.py": b"new = 1\n",
    "lib/new/crlf.py": b"new = 2\r\n",
    "lib/new/go.sh": b"#!/bin/sh\nexit 0\n",
    "lib/new/empty.py": b"",
}


def result_files() -> dict[str, bytes | str]:
    """What the work tree must hold after applying."""
    return {**steps()[2], **OVERLAY}


def write_files(root: Path, files: dict[str, bytes | str]) -> None:
    """Make ``root`` hold exactly ``files`` (beside .git)."""
    for path in sorted(root.rglob("*"), reverse=True):
        if ".git" not in path.relative_to(root).parts:
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.symlink_to(content)
        else:
            path.write_bytes(content)
            path.chmod(0o755 if name.endswith(".sh") else 0o644)


def read_files(root: Path) -> dict[str, bytes | str]:
    """Every file below ``root`` (beside .git), with executable bits checked against the name."""
    found: dict[str, bytes | str] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if name.split("/")[0] == ".git":
            continue
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            assert bool(path.stat().st_mode & 0o100) == name.endswith(".sh"), name
            found[name] = path.read_bytes()
    return found


def snapshot(path: Path) -> dict[str, tuple]:
    """Content, mode and time of everything below ``path``, .git included."""
    return {
        item.relative_to(path).as_posix(): (
            item.lstat().st_mode,
            # git freshens the time of an object that it was to write and already has
            0 if item.is_dir() or "objects" in item.parts else item.lstat().st_mtime_ns,
            item.read_bytes() if item.is_file() and not item.is_symlink() else b"",
        )
        for item in path.rglob("*")
    }


def git(path: Path, *args: str, **env: str) -> str:
    """Plain git, as an oracle, without the caller's configuration."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    clean.update(GIT_CONFIG_GLOBAL=os.devnull, GIT_CONFIG_NOSYSTEM="1")
    for role in ("AUTHOR", "COMMITTER"):
        clean.update({f"GIT_{role}_NAME": "t", f"GIT_{role}_EMAIL": "t@t"})
        clean[f"GIT_{role}_DATE"] = "2021-11-10T00:00:00 +0000"
    clean.update(env)
    done = subprocess.run(["git", "-C", str(path), *args], env=clean, capture_output=True)
    assert done.returncode == 0, (args, done.stderr)
    return os.fsdecode(done.stdout).strip("\n")


@dataclass(frozen=True)
class Project:
    """A project folder (bases/, patch/, overlay/) for the synthetic upstream."""

    root: Path
    upstream: Path

    @property
    def base(self) -> Base:
        return load_base(self.root / "bases" / "syn")

    @property
    def bases(self) -> list[Base]:
        return [self.base]

    def clone(self, path: Path, *options: str) -> Path:
        """A plain clone of upstream at ``path``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        git(path.parent, "clone", "-q", *options, str(self.upstream), str(path))
        return path

    def run(self, *args: object, **options: object) -> subprocess.CompletedProcess:
        """``python apply_patch.py`` in a process of its own, on this project's bases."""
        options.setdefault("env", dict(os.environ))
        return subprocess.run(
            self.command(*args), capture_output=True, text=True, timeout=120, **options
        )

    def main(self, *args: object) -> tuple[int, str]:
        """The same in this process: exit code, and stdout with stderr."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = main(["apply", *map(str, args), "--bases", str(self.root / "bases")])
        return code, out.getvalue()

    def command(self, *args: object) -> list[str]:
        tool = [sys.executable, str(ROOT / "apply_patch.py")]
        return tool + [str(item) for item in args] + ["--bases", str(self.root / "bases")]


def digest(project: Project) -> str:
    """The digest of a project's series (the only thing here that the code under test makes)."""
    from dsmoe.patchset.series import load_series

    return load_series(project.base).digest
