"""Rules of the house that imports show: read from the syntax, nothing is imported."""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path
from typing import Iterator, NamedTuple

import pytest
from support import ROOT

TREES = {"dsmoe": ROOT, "deepspeed": ROOT / "overlay"}
#: A private name of DeepSpeed itself, which no file of this project can rename.
ALLOWED_PRIVATE = {("deepspeed.moe.gshard.all_to_all", "_AllToAll")}


class Import(NamedTuple):
    """``name`` of ``module`` (empty: the module itself); ``later``: inside of a function."""

    module: str
    name: str
    later: bool


def sources(package: str) -> dict[str, Path]:
    """Module name -> file, of dsmoe or of the overlay."""
    root = TREES[package]
    files = {}
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


@lru_cache(maxsize=None)
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@lru_cache(maxsize=None)
def imports(module: str, path: Path) -> tuple[Import, ...]:
    """Every import of a file, relative ones resolved, those for type checkers left out."""

    def visit(node: ast.AST, later: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, "", later) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                inside = module.split(".")
                up = node.level - (path.name == "__init__.py")
                source = ".".join([*inside[: len(inside) - up], *filter(None, [source])])
            yield from (Import(source, alias.name, later) for alias in node.names)
        inner = later or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.expr):  # which holds no statement
                yield from visit(child, inner)

    return tuple(visit(tree_of(path), False))


def targets(found: Import, known: dict[str, Path]) -> str | None:
    """The module of ``known`` that an import loads, if any."""
    whole = f"{found.module}.{found.name}"
    return whole if whole in known else found.module if found.module in known else None


@pytest.mark.parametrize("package", TREES)
def test_no_private_name_is_imported_from_another_file(package: str) -> None:
    private = [
        (module, found.name)
        for module, path in sources(package).items()
        for found in imports(module, path)
        if found.name.startswith("_") and not found.name.startswith("__")
    ]
    assert set(private) - ALLOWED_PRIVATE == set()


@pytest.mark.parametrize("package", TREES)
def test_no_private_name_of_another_module_is_used(package: str) -> None:
    """``from . import other`` and then ``other._name``."""
    known = sources(package)
    for module, path in known.items():
        names = {f.name for f in imports(module, path) if f"{f.module}.{f.name}" in known}
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                private = node.attr.startswith("_") and not node.attr.startswith("__")
                assert not (private and node.value.id in names), f"{module}: {ast.unparse(node)}"


@pytest.mark.parametrize("package", TREES)
def test_no_two_modules_import_each_other(package: str) -> None:
    """No circle, however long; imports inside of functions count, since they only hide one."""
    known = sources(package)
    edges = {
        module: {targets(found, known) for found in imports(module, path)} - {None, module}
        for module, path in known.items()
    }
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module not in done:
            for other in sorted(filter(None, edges[module])):
                visit(other, (*way, module))
            done.add(module)

    for module in edges:
        visit(module, ())


def test_command_lines_end_at_the_commands() -> None:
    """Options become a request in dsmoe/commands; no file below it knows argparse's Namespace.

    dsmoe/common/arguments.py is the parser; training_process.py and there.py are programs with a
    few options of their own, which other processes start.
    """
    programs = {"dsmoe.benchmark.train.training_process", "dsmoe.defects.there"}
    parsers = {"dsmoe.cli", "dsmoe.common.arguments", *programs}
    for module, path in sources("dsmoe").items():
        if module.startswith("dsmoe.commands."):
            continue
        text = path.read_text(encoding="utf-8")
        assert "Namespace" not in text, f"{module} has argparse's Namespace"
        if module not in parsers:
            names = {found.module for found in imports(module, path)}
            assert "argparse" not in names, f"{module} imports argparse"


def test_the_overlay_never_imports_the_project() -> None:
    for module, path in sources("deepspeed").items():
        for found in imports(module, path):
            assert found.module.split(".")[0] not in ("dsmoe", "tests", "support"), module


def test_nothing_imports_a_command() -> None:
    """A command is chosen by its name; other code never needs it."""
    for module, path in sources("dsmoe").items():
        if module.startswith("dsmoe.commands.") or module == "dsmoe.cli":
            continue
        for found in imports(module, path):
            assert not f"{found.module}.{found.name}".startswith("dsmoe.commands"), module


def test_test_modules_do_not_import_each_other() -> None:
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for found in imports(path.stem, path):
            assert not any(part.startswith("test_") for part in found.module.split(".")), path
            assert not found.name.startswith("test_"), path
            if "support" in path.relative_to(ROOT / "tests").parts:
                assert found.module.split(".")[0] not in ("engine", "unit", "system", "gpu"), path


def test_the_quick_tests_import_neither_deepspeed_nor_torch_s_processes() -> None:
    """tests/unit works without a checkout; support modules that need one are for other tests."""
    support = {f"support.{p.stem}": p for p in (ROOT / "tests" / "support").glob("*.py")}

    def heavy(path: Path, seen: frozenset[str] = frozenset()) -> set[str]:
        names: set[str] = set()
        for found in imports(path.stem, path):
            names |= {found.module, f"{found.module}.{found.name}"}
        wrong = {n for n in names if n.split(".")[0] == "deepspeed" or n == "torch.distributed"}
        for name in sorted(names & support.keys() - seen):
            wrong |= heavy(support[name], seen | {name})
        return wrong

    for path in sorted((ROOT / "tests" / "unit").rglob("*.py")):
        assert heavy(path) == set(), path
