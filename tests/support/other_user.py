"""A user that is not root: nobody where the tests run as root, else the one that runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

NOBODY = 65534
PATH = f"{os.defpath}:/usr/local/bin"
#: What of the tests' environment a user would have, too; neither PYTHONPATH nor a home.
KEPT = ("PIP_", "LANG", "LC_", "OMP_", "GLOO_", "SSL_", "http_", "https_", "HTTP_", "HTTPS_")
PROBE = (
    "import sys, venv, ensurepip; "
    "sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 13) or sys.prefix != sys.base_prefix)"
)


@dataclass(frozen=True)
class User:
    """``home`` belongs to the user; ``number`` is None for the one that runs the tests."""

    home: Path
    number: int | None = None

    def own(self, folder: Path) -> Path:
        """``folder``, and all in it, given to the user."""
        for path in (folder, *folder.rglob("*")):
            if self.number is not None:
                os.chown(path, self.number, self.number, follow_symlinks=False)
        return folder

    def run(
        self, words: list[str], cwd: Path, **more: str | None
    ) -> subprocess.CompletedProcess[str]:
        """Run ``words`` as the user, with the variables ``more`` (None: without that one).

        Raises OSError where the user may not execute the program.
        """
        kept = {name: value for name, value in os.environ.items() if name.startswith(KEPT)}
        found: dict[str, str | None] = {**kept, "HOME": str(self.home), "PATH": PATH, **more}
        user = {} if self.number is None else {"user": self.number, "group": self.number}
        return subprocess.run(
            words,
            cwd=cwd,
            env={name: value for name, value in found.items() if value is not None},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
            umask=0o022,
            **({**user, "extra_groups": []} if user else {}),
        )


def python_for(user: User) -> tuple[Path | None, list[str]]:
    """A Python that ``user`` may run and that makes virtual environments, and why not others.

    The one of the tests, else the system's: root's own (pyenv, conda) is often closed to others.
    """
    why = []
    own = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    for candidate in (own, Path("/usr/bin/python3"), Path("/usr/local/bin/python3")):
        try:
            done = user.run([str(candidate), "-c", PROBE], Path("/"))
        except OSError as error:
            why.append(f"{candidate}: {error.strerror}")
            continue
        if done.returncode == 0:
            return candidate, why
        said = done.stderr.strip().splitlines() or ["not Python 3.9 to 3.13"]
        why.append(f"{candidate}: {said[-1]}")
    return None, why
