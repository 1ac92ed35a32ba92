"""The README's commands as a user types them who is not root: with the installed wheel, in a clone.

``make test-wheel`` runs this file. pip installs the wheel and all that its extras name into an
environment of its own. Root does that, and the user, who may not write there, runs the commands;
where the tests do not run as root, both are the user that runs them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Iterator

import pytest
from support import ROOT
from support.blocks import blocks, shortened
from support.other_user import NOBODY, PATH, User, python_for

pytestmark = pytest.mark.slow

#: A part of a line -> why it is not run here.
WHY_NOT = {
    "make test": "it runs these tests",
    "--suite tuned": "its cases need a GPU",
    "--suite published": "its cases need a GPU",
}
INSTALLING = "pip install "


def lines(installed: bool) -> list[str]:
    """The lines of the README's blocks for an installed dsmoe, or for a clone; each one once."""
    found = [
        line.split(" # ")[0].strip()
        for _, text in blocks(ROOT / "README.md")
        if (INSTALLING in text) == installed
        for line in text.splitlines()
    ]
    return [line for line in dict.fromkeys(found) if not any(part in line for part in WHY_NOT)]


INSTALL, *WITH_WHEEL = lines(installed=True)
IN_CLONE = lines(installed=False)
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")


@pytest.fixture(scope="module")
def top() -> Iterator[Path]:
    """A folder that every user may read; pytest's own is closed to others."""
    with tempfile.TemporaryDirectory(prefix="dsmoe-user-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def user(top: Path) -> User:
    (top / "home").mkdir()
    user = User(top / "home", NOBODY if os.geteuid() == 0 else None)
    user.own(user.home)
    return user


@pytest.fixture(scope="module")
def installed(wheel: Path, user: User, top: Path) -> dict[str, str]:
    """The variables of a shell in which the environment with the wheel is active."""
    python, why = python_for(user)
    if python is None:  # a failure, since make test-wheel was asked for nothing else
        pytest.fail(
            f"found no Python that the user {user.number} may run ({'; '.join(why)}); expected "
            "one of 3.9 to 3.13 with venv: install the system's (Debian: python3-venv)",
            pytrace=False,
        )
    (top / "dist").mkdir()
    shutil.copy2(wheel, top / "dist")
    venv = top / "environment"
    place = {"VIRTUAL_ENV": str(venv), "PATH": f"{venv}/bin:{PATH}"}
    # 0 turns that option on. The user compiles what is imported; all takes longer than to install.
    pip = {**os.environ, **place, "PIP_NO_COMPILE": "0", "PYTHONPATH": ""}
    for command in (f"{python} -m venv {venv}", INSTALL):
        done = subprocess.run(
            ["bash", "-ec", command], cwd=top, env=pip, capture_output=True, text=True, umask=0o022
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return {**place, "PYTHONPYCACHEPREFIX": str(user.home / "compiled")}


@pytest.fixture(scope="module")
def clone(user: User, top: Path) -> Path:
    """The user's own copy of the source tree, as git would clone it."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, done.stdout.split("\0")):
        if (ROOT / name).is_file():
            (top / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, top / "clone" / name)
    return user.own(top / "clone")


def typed(line: str, user: User, folder: Path, shell: dict[str, str]) -> str:
    """What ``line`` prints; it must do what it says."""
    done = user.run(["bash", "-ec", shortened(line)], folder, **shell)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize("line", WITH_WHEEL)
def test_with_the_wheel(line: str, user: User, installed: dict[str, str]) -> None:
    typed(line, user, user.home, installed)


def test_what_they_left(user: User, installed: dict[str, str]) -> None:
    """The files that these commands name are there, they are the user's."""
    [row] = (user.home / "results/results_e2e.tsv").read_text().splitlines()
    assert "smoke" in row and "-1" not in row.split("\t")
    for name in ("report.html", "figure.pdf", "hostfile", "exported/model.safetensors"):
        found = (user.home / name).stat()
        assert found.st_size and found.st_uid == (user.number or os.geteuid()), name
    out = typed("dsmoe generate exported 'def ' --tokens 3", user, user.home, installed)
    assert "def " in out


@pytest.mark.parametrize("line", IN_CLONE)
def test_in_a_clone(line: str, user: User, clone: Path, installed: dict[str, str]) -> None:
    typed(line, user, clone, installed)


def refused(line: str, code: int, user: User, installed: dict[str, str], **more: str | None) -> str:
    """The one line with which ``line`` ends."""
    folder = user.home / "elsewhere"
    folder.mkdir(exist_ok=True)
    user.own(folder)
    done = user.run(["bash", "-ec", line], folder, **{**installed, **more})
    said = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert done.returncode == code and len(said) == 1, (line, done.returncode, done.stderr)
    assert "Traceback" not in done.stderr, done.stderr
    return said[0]


def test_a_closed_folder_of_texts(user: User, installed: dict[str, str]) -> None:
    """It is counted; the one tiny text that is left is too little, and nothing is started."""
    texts = user.home / "texts"
    (texts / "closed").mkdir(parents=True)
    (texts / "tiny.txt").write_text("text")
    user.own(texts)
    (texts / "closed").chmod(0)
    done = user.run(["dsmoe", "run", "1", "--data", "texts"], user.home, **installed)
    (texts / "closed").chmod(0o755)
    assert done.returncode == 9 and "1 unreadable folder" in done.stdout, done.stdout + done.stderr
    assert done.stderr.startswith("error: the text has ") and done.stderr.count("\n") == 1


@AS_ROOT
def test_a_checkout_of_root(user: User, top: Path, installed: dict[str, str]) -> None:
    checkout = top / "checkout"
    subprocess.run(["git", "init", "-q", str(checkout)], check=True, umask=0o022)
    for line in (f"dsmoe apply {checkout}", f"dsmoe run 1 --deepspeed {checkout}"):
        said = refused(line, 3, user, installed)
        assert f"git config --global --add safe.directory {checkout}" in said, said


@AS_ROOT
@pytest.mark.parametrize("home", ["/nonexistent", None], ids=["not there", "not known"])
def test_without_a_home(home: str | None, user: User, installed: dict[str, str]) -> None:
    """nobody's home is not there; a user that only a number names (containers) has none."""
    someone = user if home else User(user.home, 54321)
    for line in (
        "dsmoe apply DeepSpeed --from-release",
        "dsmoe run 1 --steps 1",
        "dsmoe train 1 --steps 1 --save model",
    ):
        said = refused(line, 8, someone, installed, HOME=home)
        assert "export DSMOE_HOME=" in said, said
