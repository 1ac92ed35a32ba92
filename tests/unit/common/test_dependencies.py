"""pyproject.toml is the only list of dependencies, and is read as pip reads it."""

from __future__ import annotations

import ast
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
from support import ROOT

from dsmoe.commands import version
from dsmoe.common import places
from dsmoe.common.errors import EnvironmentProblem
from dsmoe.common.packages import dependencies
from dsmoe.common.packages.dependencies import Requirement, missing, parse, requirements


def lists() -> dict[str, list[str]]:
    """pyproject.toml as a real TOML parser reads it: the oracle."""
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11's TOML parser")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def test_the_list_is_read_as_a_toml_parser_reads_it() -> None:
    for extra, lines in lists().items():
        asked = [extra] if extra else []
        assert [str(item) for item in requirements(*asked)] == lines
    assert len(requirements("run", "dev")) == len(lists()["run"]) + len(lists()["dev"])


@pytest.mark.parametrize("python", [(3, 8), (3, 9), (3, 10), (3, 13)])
def test_a_marker_holds_where_packaging_says_so(python: tuple[int, int]) -> None:
    packaging = pytest.importorskip("packaging.requirements")
    for extra in ("run", "torch", "hopper", "dev"):
        for item in requirements(extra):
            marker = packaging.Requirement(str(item)).marker
            environment = {"python_version": ".".join(map(str, python))}
            assert item.applies(python) == (marker is None or marker.evaluate(environment))


@pytest.mark.parametrize(
    ("line", "release", "expected"),
    [
        ("torch==2.13.0", "2.13.0+cpu", True),
        ("torch==2.13.0", "2.13.1", False),
        ("flash-attn-4==4.0.0b36", "4.0.0b35", False),
        ("filelock>=3.12", "3.9.1", False),
        ("filelock>=3.12", "3.12", True),
        ("GitPython>=3.1.40", "3.2", True),
        ("numpy", "0.1", True),
    ],
)
def test_releases_are_compared_as_packaging_compares_them(
    line: str, release: str, expected: bool
) -> None:
    packaging = pytest.importorskip("packaging.requirements")
    assert packaging.Requirement(line).specifier.contains(release, prereleases=True) == expected
    assert parse(line).allows(release) == expected


@pytest.mark.parametrize(
    "line",
    [
        "torch<2.13",
        "torch>=1.10,<2.13",
        "torch @ file:///torch.whl",
        "torch; sys_platform == 'linux'",
        "torch==2.*",
        "",
    ],
)
def test_what_cannot_be_read_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="expected NAME"):
        parse(line)


def test_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"torch": "1.9.0", "numpy": "2.0"}
    monkeypatch.setattr(dependencies, "version_of", here.get)
    wanted = [
        parse(line) for line in ("torch>=1.10", "numpy", "rich>=13", "old; python_version < '3.0'")
    ]
    assert [item.name for item in missing(wanted)] == ["torch", "rich"]


def test_an_unknown_extra_is_one_line() -> None:
    with pytest.raises(EnvironmentProblem, match=r"no extra speed; expected one of torch, run"):
        requirements("speed")


def test_an_installed_package_reads_its_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "dsmoe-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: dsmoe\nVersion: 9\n"
        "Requires-Dist: GitPython>=3.1.40\n"
        "Provides-Extra: hopper\n"
        'Requires-Dist: quack-kernels==0.6.5; python_version >= "3.10" and extra == "hopper"\n'
        "Provides-Extra: run\n"
        'Requires-Dist: numpy; extra == "run"\n'
        "Requires-Dist: torch (==2.8.0) ; (python_version < '3.10') and extra == 'run'\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(places, "installed", lambda: True)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert metadata.version("dsmoe") == "9"
    assert requirements() == [Requirement("GitPython", "", ">=", "3.1.40")]
    assert requirements("hopper") == [
        Requirement("quack-kernels", "", "==", "0.6.5", 'python_version >= "3.10"')
    ]
    assert [str(item) for item in requirements("run")] == [
        "numpy",
        "torch==2.8.0; python_version < '3.10'",
    ]


def imports(folder: Path) -> dict[str, str]:
    """Top-level name -> a file under ``folder`` that imports it."""
    found: dict[str, str] = {}
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [str(node.module)]
            found.update({name.split(".")[0]: str(path) for name in names})
    return found


@pytest.mark.skipif(sys.version_info < (3, 10), reason="needs packages_distributions()")
def test_every_import_is_of_a_listed_package() -> None:
    """So ``pip install 'dsmoe[run]'``, with the extra that a message names, is all there is."""
    extras = ("run", "hopper", "tokenizers", "tensorboard", "ray", "completion")
    listed = {item.name.lower() for item in requirements() + requirements(*extras)}
    packages = metadata.packages_distributions()
    # of this project or its overlay; brought by torch; another package of an event-file writer;
    # modules of the packages for Hopper and of Ray, which are seldom installed
    known = {"dsmoe", "deepspeed", "triton", "tensorboardX"}
    known |= {"quack", "flash_attn", "cutlass", "cuda", "ray"}
    known |= {"stand_in"}  # beside dsmoe/defects/there.py, which another Python runs as a script
    for folder in ("dsmoe", "overlay"):
        for name, path in imports(ROOT / folder).items():
            if name not in sys.stdlib_module_names and name not in known:
                owners = {owner.lower() for owner in packages.get(name, [name])}
                assert owners & listed, f"{path} imports {name}, which pyproject.toml has not"


def test_every_package_of_a_run_has_a_licence_and_a_use() -> None:
    assert set(version.package_names()) == set(version.LICENCES)


def test_no_release_stands_anywhere_else() -> None:
    """A pin in a script, a workflow or a module would be a second list."""
    pins = [item for extra in ("run", "torch", "hopper", "dev") for item in requirements(extra)]
    pinned = re.compile(
        "|".join(f"{re.escape(item.name)}['\"]?\\s*(?:==|:)\\s*['\"]?{re.escape(item.release)}"
                 for item in pins if item.comparison == "==")
    )  # fmt: skip
    places_to_look = [
        *(ROOT / "dsmoe").rglob("*.py"),
        *(ROOT / "scripts").iterdir(),
        *(ROOT / ".github").rglob("*.yml"),
        ROOT / ".pre-commit-config.yaml",
        ROOT / "Makefile",
    ]
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in places_to_look
        if path.is_file()
        for match in pinned.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not found
    assert not list(ROOT.glob("requirements*.txt"))
