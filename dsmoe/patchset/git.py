"""Running git, through GitPython, in an environment that the user cannot bend.

Every call names its repository with ``-C``; every ``GIT_*`` variable of the caller is removed,
global and system configuration is hidden, and the keys that a repository's own configuration
could set to change bytes or diffs are overridden on the command line. No command reaches the
network, asks for a password, or runs a program that the repository names: hooks, fsmonitor,
filters and lazy fetching of a partial clone are all off.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Iterator, Sequence

from dsmoe.common import programs
from dsmoe.common.errors import EnvironmentProblem, GitFailed
from dsmoe.common.packages import dependencies

# Each key can change what is written, compared or printed; -c outranks every file.
_OVERRIDES = (
    "core.autocrlf=false",
    "core.eol=lf",
    "core.safecrlf=false",
    "core.attributesFile=" + os.devnull,
    "core.hooksPath=" + os.devnull,  # read-tree -u runs post-index-change
    "core.fsmonitor=false",  # may name a program
    "core.sparseCheckout=false",  # read-tree -u would leave files out
    "protocol.allow=never",
    "core.quotePath=false",
    "core.bigFileThreshold=512m",  # larger files count as binary in diffs
    "apply.whitespace=nowarn",
    "apply.ignoreWhitespace=no",
    "diff.noprefix=false",
    "diff.mnemonicPrefix=false",
    "diff.algorithm=myers",
    "diff.indentHeuristic=false",
    "diff.interHunkContext=0",
    "diff.suppressBlankEmpty=false",
    "diff.orderFile=" + os.devnull,
    "diff.renames=false",
    "diff.relative=false",
    "diff.default.xfuncname=^$^",  # matches nothing: no upstream text after the second @@
    "merge.conflictStyle=merge",
    "submodule.recurse=false",
    "status.relativePaths=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "advice.detachedHead=false",
)

# Outranks protocol.NAME.allow of the repository's own configuration: an empty list of protocols.
_OFFLINE = {
    "GIT_ALLOW_PROTOCOL": "",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "",
    "SSH_ASKPASS": "",
}
_DAMAGED = re.compile(
    r"loose object .* is corrupt|object file .* is empty|inflate:|garbage at end of loose object"
    r"|unable to unpack|bad (tree |blob |commit )?object|missing (blob|tree|commit) object"
    r"|unable to read (tree|blob|sha1|[0-9a-f]{40})|could not read [0-9a-f]{40}"
    r"|unable to read object|failed to read (the )?object|hash mismatch"
    r"|packfile .* (cannot be|does not match|is far too short)|index file .* is too small"
    r"|from promisor remote|transport '.*' not allowed|not our ref|unable to find [0-9a-f]{40}"
    r"|error: failed to read \S|lazy fetching disabled"
    r"|cannot read existing object|object [0-9a-f]{40} cannot be read|unable to open loose object"
)
_DAMAGED_INDEX = re.compile(
    r"index file corrupt|bad index file|bad signature 0x|index file smaller"
)

_SPACE = (
    "No space left on device",
    "Disk quota exceeded",
    "File too large",
    "unable to write file",  # all that git says when a checkout runs out of room
)
# Commands that compare the index with the work tree; those that write it do, for files whose time
# of change is that of the index. A temporary index of ours knows no times.
_COMPARING = ("status", "diff-files", "checkout-index", "read-tree", "update-index")
# Those that answer at once, and the first of which every command begins with; the others may have
# a whole work tree to read or write on a slow file system.
_QUICK = ("config", "rev-parse", "version", "--version", "symbolic-ref")
QUICK_SECONDS, LONG_SECONDS = 15.0, 300.0
_RIGHTS = ("Read-only file system", "Permission denied", "insufficient permission")


@dataclass(frozen=True)
class GitOutput:
    """What one git command gave: exit status, stdout as bytes, stderr as text."""

    status: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return os.fsdecode(self.out).rstrip("\n")


def require_git() -> Any:
    """GitPython's ``Git`` class; ``EnvironmentProblem`` when it or git itself is missing."""
    if shutil.which("git") is None:
        raise EnvironmentProblem(
            "git was not found on PATH; install git (for example: apt-get install git)"
        )
    # Without this GitPython itself raises a long ImportError about the executable.
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    if "git.cmd" not in sys.modules:  # importing it runs git, without a limit
        try:
            programs.ask(["git", "version"], QUICK_SECONDS)
        except (programs.TimedOut, OSError) as error:
            raise EnvironmentProblem(
                f"git cannot be used: {error}; check the program {shutil.which('git')}"
            ) from None
    try:
        from git.cmd import Git as PythonGit
        from git.cmd import execute_kwargs
    except ImportError as error:
        raise EnvironmentProblem(
            f"the Python package GitPython cannot be imported ({error}); "
            f"install it: {_how_to_install()}"
        ) from None
    if "strip_newline_in_stdout" not in execute_kwargs:  # a diff would lose its last newline
        raise EnvironmentProblem(
            f"the Python package GitPython is too old; install it: {_how_to_install()}"
        )
    return PythonGit


def _how_to_install() -> str:
    wanted = next(str(item) for item in dependencies.requirements() if item.name == "GitPython")
    return f"{sys.executable} -m pip install '{wanted}'"


@dataclass(frozen=True)
class Git:
    """git in one repository: ``Git(path).run("status")``.

    ``index`` and ``objects`` redirect GIT_INDEX_FILE and GIT_OBJECT_DIRECTORY; ``alternates`` is
    the object folder that stays readable then. ``lock_fd`` is inherited by every child, so that
    a lock held on it lives as long as the last git process that we started. ``excludes`` is the
    user's own list of ignored files, the one setting that is kept.
    """

    path: Path
    index: Path | None = None
    objects: Path | None = None
    alternates: Path | None = None
    lock_fd: int | None = None
    trusted: bool = False
    excludes: str | None = None

    def using(self, **changes: Any) -> Git:
        """A copy with other redirections."""
        return replace(self, **changes)

    def run(
        self,
        *args: str,
        stdin: bytes = b"",
        ok: Sequence[int] = (0,),
        env: dict[str, str] | None = None,
        neutral: bool = True,
    ) -> GitOutput:
        """Run one command; raise when its status is not in ``ok``.

        Raises:
            EnvironmentProblem: git is missing, or its error names rights or disk space.
            GitFailed: any other failure, with git's own words.
        """
        result = self._execute(args, stdin, env or {}, neutral)
        if result.status and _DAMAGED.search(result.err):  # never the answer that was asked for
            raise damaged(self.path, " ".join(result.err.split()))
        if result.status not in ok:
            raise failure(result, args, self.path)
        return result

    def has(self, oid: str) -> bool:
        """Whether the object ``oid`` (40 digits) is in the repository.

        Not by the status of ``cat-file -e``: where a remote promises objects, its words for one
        that is absent are those for one that is missing. Raises as :meth:`run`.
        """
        found = self.run("cat-file", "--batch-check", stdin=f"{oid}\n".encode())
        return not found.text.endswith(" missing")

    def _filters(self) -> list[str]:
        """The filters that the repository's configuration names, as ``filter.NAME``."""
        args = ("config", "--null", "--name-only", "--get-regexp", r"^filter\..*\.")
        keys = [os.fsdecode(key) for key in self._execute(args, b"", {}, True).out.split(b"\0")]
        return list(dict.fromkeys(key.rpartition(".")[0] for key in keys if key))

    def _execute(
        self, args: tuple[str, ...], stdin: bytes, env: dict[str, str], neutral: bool
    ) -> GitOutput:
        python_git = require_git()
        settings = {**env, **_OFFLINE}
        overrides = list(_OVERRIDES)
        if neutral and self.index is None and args[0] in _COMPARING:
            more, variables = _without_filters(self._filters())
            overrides += more
            settings.update(variables)
        if neutral:
            settings.update(GIT_CONFIG_GLOBAL=os.devnull, GIT_CONFIG_NOSYSTEM="1")
            settings.update(GIT_ATTR_NOSYSTEM="1")
        settings.update(GIT_OPTIONAL_LOCKS="0")
        if self.index is not None:
            settings["GIT_INDEX_FILE"] = str(self.index)
        if self.objects is not None:
            settings["GIT_OBJECT_DIRECTORY"] = str(self.objects)
            settings["GIT_ALTERNATE_OBJECT_DIRECTORIES"] = _alternate(self.alternates)
        command = ["git", "-C", str(self.path)]
        if neutral:
            command += [part for item in overrides for part in ("-c", item)]
        if self.excludes is not None:
            command += ["-c", f"core.excludesFile={self.excludes}"]
        if self.trusted:
            command += ["-c", "safe.directory=*"]
        command += args
        seconds = QUICK_SECONDS if args[0] in _QUICK else LONG_SECONDS
        extra = {} if self.lock_fd is None else {"pass_fds": (self.lock_fd,)}
        with tempfile.TemporaryFile() as source:
            source.write(stdin)
            source.seek(0)
            with _without_unwanted():
                started = python_git().execute(
                    command, istream=source, env=settings, as_process=True, **extra
                )
            process = started.proc
            # Not GitPython's own limit, which waits for programs that git started.
            try:
                out, err = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                raise EnvironmentProblem(
                    f"git {args[0]} did not end within {seconds:g} s in {self.path} and was ended; "
                    f"check the file system, and the program {shutil.which('git')}"
                ) from None
            finally:
                programs.end(process)
        return GitOutput(process.returncode, out, err.decode("utf-8", "replace").rstrip("\n"))


@contextlib.contextmanager
def _without_unwanted() -> Iterator[None]:
    """The environment, while a process is started, without the variables that it must not have.

    GitPython always starts from os.environ; a GIT_DIR of a calling hook would send our writes to
    another repository. env(1) drops them too, for a quarter of a git's time.
    """
    kept = {name: os.environ.pop(name) for name in list(os.environ) if _unwanted(name)}
    try:
        yield
    finally:
        os.environ.update(kept)


def _without_filters(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Settings that switch the filters off, for ``-c`` and for the environment."""
    pairs = [
        (f"{name}.{key}", value)
        for name in names
        for key, value in (("clean", ""), ("smudge", ""), ("process", ""), ("required", "false"))
    ]
    plain = [f"{key}={value}" for key, value in pairs if "=" not in key]
    odd = [(key, value) for key, value in pairs if "=" in key]  # -c would end such a key too early
    variables = {f"GIT_CONFIG_KEY_{number}": key for number, (key, _) in enumerate(odd)}
    variables.update({f"GIT_CONFIG_VALUE_{n}": value for n, (_, value) in enumerate(odd)})
    return plain, {**variables, "GIT_CONFIG_COUNT": str(len(odd))}


def _unwanted(name: str) -> bool:
    # GIT_EXEC_PATH is where a relocated git finds its own programs; GIT_PYTHON_* is GitPython's.
    return name.startswith("GIT_") and name != "GIT_EXEC_PATH" and "_PYTHON_" not in name


def _alternate(path: Path | None) -> str:
    text = str(path)
    if ":" in text or text.startswith('"'):
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return text


def damaged(path: Path, words: str) -> GitFailed:
    """The failure for an object store that lacks objects or holds broken ones."""
    return GitFailed(
        f"the git object store of {path} is damaged: objects are missing or broken; nothing was "
        f"fetched; git -C {path} fsck lists them; make a new clone (without --filter), or build "
        f"another checkout with --from-release (git: {words[:300]})"
    )


def failure(result: GitOutput, args: Sequence[str], path: Path) -> Exception:
    """The exception that fits a failed git command."""
    words = " ".join(line.strip() for line in result.err.splitlines()[:6]) or "(no message)"
    if _DAMAGED_INDEX.search(result.err):
        return GitFailed(
            f"the index of {path} is damaged; rm {path}/.git/index && git -C {path} reset makes it "
            f"anew from HEAD and keeps the work tree (git: {words})"
        )
    what = f"git {args[0]} failed in {path} with status {result.status}: {words}"
    if result.status == -signal.SIGXFSZ or any(text in result.err for text in _SPACE):
        return EnvironmentProblem(
            f"no room to write in {path}; free disk space and repeat ({what})"
        )
    if any(text in result.err for text in _RIGHTS):
        return EnvironmentProblem(f"no right to write in {path}; make it writable ({what})")
    return GitFailed(what)
