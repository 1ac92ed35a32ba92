"""The built wheel, installed into an environment of its own, does what the source tree does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support import ROOT

from dsmoe.patchset.base import load_bases
from dsmoe.patchset.sources.archive import fetch_archive

SOURCES = ("dsmoe", "patch", "overlay", "bases", "setup.py", "pyproject.toml", "MANIFEST.in")
TEXTS = ("README.md", "LICENSE", "NOTICE")
DOORS = {"apply-patch": "apply_patch.py", "get-hostfiles": "get_hostfiles.py"}


def clean_environment() -> dict[str, str]:
    """Without the paths that the tests add, so that only the installed package is found."""
    names = ("PYTHONPATH", "DSMOE_DEEPSPEED", "DSMOE_BASE", "DSMOE_HOME")
    return {name: value for name, value in os.environ.items() if name not in names}


def python(executable: Path | str, *args: object, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(executable), *(str(item) for item in args)],
        cwd=str(cwd),
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=180,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by pip from a copy of the sources, without the network."""
    top = tmp_path_factory.mktemp("wheel")
    source = top / "source"
    source.mkdir()
    junk = shutil.ignore_patterns("__pycache__", ".export")
    for name in (*SOURCES, *TEXTS):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=junk)
        else:
            shutil.copy2(ROOT / name, source / name)
    missing = [name for name in ("pip", "setuptools", "wheel") if not _has(name)]
    if missing:
        pytest.skip(f"building a wheel offline needs {', '.join(missing)} here")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "-w", top)
    done = python(sys.executable, "-m", "pip", "wheel", "-q", *options, source, cwd=top)
    assert done.returncode == 0, done.stderr[-2000:]
    return next(top.glob("dsmoe-*.whl"))


def _has(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with the wheel; its other packages are this one's."""
    top = tmp_path_factory.mktemp("environment")
    done = python(sys.executable, "-m", "venv", "--without-pip", top / "venv", cwd=top)
    assert done.returncode == 0, done.stderr
    site = next((top / "venv/lib").glob("python*/site-packages"))
    target = ("--target", site, "--no-deps", "--no-index")
    done = python(sys.executable, "-m", "pip", "install", "-q", *target, wheel, cwd=top)
    assert done.returncode == 0, done.stderr
    import git

    (site / "others.pth").write_text(str(Path(git.__file__).parents[1]) + "\n")
    return top / "venv/bin/python"


def test_the_wheel_holds_the_data_byte_for_byte(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for folder in ("patch", "overlay", "bases"):
            for path in sorted((ROOT / folder).rglob("*")):
                if path.is_file() and path.suffix != ".pyc":
                    inside = f"dsmoe/_data/{path.relative_to(ROOT).as_posix()}"
                    assert archive.read(inside) == path.read_bytes()
                    names.discard(inside)
    assert not [name for name in names if name.startswith("dsmoe/_data/")]
    assert not [name for name in names if name.startswith("tests/")]
    assert any(name.endswith("NOTICE") for name in names)


def test_it_is_the_installed_package_and_knows_its_parts(installed: Path, tmp_path: Path) -> None:
    done = python(installed, "-m", "dsmoe", "--version", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [base["name"] for base in found["bases"]] == [base.name for base in load_bases()]
    for base in found["bases"]:
        assert base["series"] == base["locked_series"] and base["licence"] == "MIT"
    code = "import dsmoe, sys; print(dsmoe.__file__)"
    where = python(installed, "-c", code, cwd=tmp_path).stdout.strip()
    assert where.startswith(str(installed.parents[1]))


@pytest.mark.parametrize("door", DOORS)
def test_a_door_is_the_same_as_in_the_source_tree(
    door: str, installed: Path, tmp_path: Path
) -> None:
    for arguments in (["--help"], ["--no-such-option"]):
        one = python(installed, "-m", "dsmoe", door, *arguments, cwd=tmp_path)
        two = python(sys.executable, ROOT / DOORS[door], *arguments, cwd=tmp_path)
        assert (one.returncode, one.stdout, one.stderr) == (two.returncode, two.stdout, two.stderr)


def test_run_has_its_help_and_unknown_doors_are_refused(installed: Path, tmp_path: Path) -> None:
    done = python(installed, "-m", "dsmoe", "run", "--help", cwd=tmp_path)
    assert done.returncode == 0 and "NUM_GPUS" in done.stdout
    done = python(installed, "-m", "dsmoe", "jump", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1


def test_it_builds_and_applies_as_the_source_tree_does(installed: Path, tmp_path: Path) -> None:
    base = next(base for base in load_bases() if base.name == "bd3ebd")
    archive = fetch_archive(base)
    done = python(
        installed, "-m", "dsmoe", "apply-patch", tmp_path / "DeepSpeed",
        "--from-release", "--archive", archive, "--json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    locked = json.loads(base.result_file.read_text(encoding="utf-8"))["trees"]
    assert json.loads(done.stdout)["trees"] == locked
