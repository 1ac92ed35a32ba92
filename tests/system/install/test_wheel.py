"""The built wheel, installed into an environment of its own, does what the source tree does.

test_wheel_as_user.py trains with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support import ROOT
from support.records import record

from dsmoe.benchmark.cases.suites import find_case
from dsmoe.benchmark.results.record import measured
from dsmoe.benchmark.results.store import append
from dsmoe.cli import COMMANDS
from dsmoe.common.packages.dependencies import parse, requirements
from dsmoe.patchset.base import load_bases
from dsmoe.patchset.sources.archive import fetch_archive


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
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``dsmoe`` in a new environment with the wheel; its other packages are this one's."""
    top = tmp_path_factory.mktemp("environment")
    done = python(sys.executable, "-m", "venv", "--without-pip", top / "venv", cwd=top)
    assert done.returncode == 0, done.stderr
    there = top / "venv/bin/python"
    options = ("-q", "--no-deps", "--no-index", "--disable-pip-version-check")
    pip = (sys.executable, "-m", "pip", "--python", there)
    done = python(*pip, "install", *options, wheel, cwd=top)
    assert done.returncode == 0, done.stderr
    site = next((top / "venv/lib").glob("python*/site-packages"))
    shared = {str(Path(place).resolve()) for place in sys.path if place.endswith("-packages")}
    (site / "others.pth").write_text("".join(f"{place}\n" for place in sorted(shared)))
    return top / "venv/bin/dsmoe"


def files(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".pyc"]


def test_the_wheel_holds_every_file_byte_for_byte(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for folder in ("dsmoe", "patch", "overlay", "bases"):
            for path in files(ROOT / folder):
                name = path.relative_to(ROOT).as_posix()
                inside = name if folder == "dsmoe" else f"dsmoe/_data/{name}"
                assert inside in names, f"{name} is not in the wheel"
                assert archive.read(inside) == path.read_bytes()
                names.discard(inside)
        scripts = archive.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    assert "dsmoe = dsmoe.__main__:main" in scripts
    rest = {name for name in names if ".dist-info/" not in name}
    assert not rest, f"the wheel holds more than the project: {rest}"
    assert any(name.endswith("NOTICE") for name in names)
    assert any(name.endswith("LICENSE") for name in names)


def test_it_is_the_installed_package_and_knows_its_parts(installed: Path, tmp_path: Path) -> None:
    done = python(installed, "--version", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [base["name"] for base in found["bases"]] == [base.name for base in load_bases()]
    for base in found["bases"]:
        assert base["series"] == base["locked_series"] and base["licence"] == "MIT"
    there = installed.with_name("python")
    where = python(there, "-c", "import dsmoe; print(dsmoe.__file__)", cwd=tmp_path).stdout
    assert where.startswith(str(installed.parents[1]))


@pytest.mark.parametrize("extra", ["", "run", "torch", "hopper", "dev"])
def test_its_metadata_is_the_list_of_pyproject(extra: str, installed: Path, tmp_path: Path) -> None:
    asked = [extra] if extra else []
    code = (
        "import sys; from dsmoe.common.packages.dependencies import requirements\n"
        "for item in requirements(*sys.argv[1:]): print(item)"
    )
    done = python(installed.with_name("python"), "-c", code, *asked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = [parse(line) for line in done.stdout.splitlines()]
    one, two = (
        [(r.name, r.comparison, r.release, r.marker.replace('"', "'")) for r in listed]
        for listed in (found, requirements(*asked))
    )
    assert one == two


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_it_has_every_command(command: str, installed: Path, tmp_path: Path) -> None:
    done = python(installed, *filter(None, [command]), "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: dsmoe {command or 'COMMAND'} ")


def test_an_unknown_command_is_refused_as_in_the_source_tree(
    installed: Path, tmp_path: Path
) -> None:
    one = python(installed, "jump", cwd=tmp_path)
    two = python(sys.executable, "-m", "dsmoe", "jump", cwd=ROOT)
    assert (one.returncode, one.stderr) == (two.returncode, two.stderr)
    assert one.returncode == 2 and one.stderr.count("\n") == 1


@pytest.mark.long
def test_it_plots_and_reports(installed: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figures = measured(find_case("artifact", 8), [15.7])
    append(tmp_path / "results", record("artifact", 8, "cuda", **figures))
    done = python(installed, "plot", "results", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # the published figures are data of the package
    assert "40.01" in done.stdout and (tmp_path / "figure.pdf").stat().st_size > 1000
    done = python(installed, "report", "results", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_it_says_what_a_run_would_start(installed: Path, tmp_path: Path) -> None:
    done = python(installed, "run", "1", "--suite", "smoke", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    here = installed.parents[1]
    command = done.stdout.splitlines()[-1]
    assert str(here) in command and str(ROOT) not in command
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_it_checks_the_machine(installed: Path, tmp_path: Path) -> None:
    done = python(installed, "check", "--json", cwd=tmp_path)
    assert done.returncode in (0, 8), done.stderr
    assert "torch" in done.stdout


def test_it_builds_and_applies_as_the_source_tree_does(installed: Path, tmp_path: Path) -> None:
    base = next(base for base in load_bases() if base.name == "bd3ebd")
    archive = fetch_archive(base)
    done = python(
        installed, "apply", tmp_path / "DeepSpeed",
        "--from-release", "--archive", archive, "--json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    locked = json.loads(base.result_file.read_text(encoding="utf-8"))["trees"]
    assert json.loads(done.stdout)["trees"] == locked
