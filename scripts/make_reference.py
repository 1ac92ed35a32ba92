#!/usr/bin/env python3
"""Write the pages of docs/reference/ that are made from the code.

    python scripts/make_reference.py            write exit-codes.md and api/*.md
    python scripts/make_reference.py --check    change nothing; exit 1 if a page is out of date

Sources are read as text (``ast``), so neither torch nor DeepSpeed is imported.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Iterator, Union

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
OVERLAY = ROOT / "overlay"
MADE = "<!-- Made by scripts/make_reference.py: edit the docstrings in the source. -->\n"
SECTIONS = r"(Args|Arguments.*|Attributes|Returns|Raises):"
Definition = Union[ast.FunctionDef, ast.ClassDef]

# page: its title, its first paragraph, and (file below overlay/, names in the order shown)
PAGES: dict[str, tuple[str, str, list[tuple[str, list[str]]]]] = {
    "model": (
        "API: the model",
        "Import these names from `deepspeed.moe.lm`; `GShardMoE`, the layer alone, is in "
        "`deepspeed.moe.gshard.layer`. [The model](../model.md) describes what they compute.",
        [
            ("deepspeed/moe/lm/model.py", ["MoELM", "StepStats"]),
            ("deepspeed/moe/lm/groups.py", ["param_groups"]),
            ("deepspeed/moe/lm/generate.py", ["generate", "stream"]),
            ("deepspeed/moe/lm/evaluate.py", ["evaluate", "Evaluation"]),
            ("deepspeed/moe/gshard/layer.py", ["GShardMoE", "LayerStats"]),
        ],
    ),
    "configuration": (
        "API: the configuration",
        "Import these names from `deepspeed.moe.lm`.",
        [
            ("deepspeed/moe/lm/config.py", ["MoELMConfig"]),
            ("deepspeed/moe/lm/config.py", ["config_for"]),
            ("deepspeed/moe/lm/sizes.py", ["count_parameters"]),
        ],
    ),
    "pipeline": (
        "API: the pipeline",
        "Import these names from `deepspeed.moe.pipeline`. [A pipeline over hosts]"
        "(../../guide/pipeline.md) describes what they do.",
        [
            ("deepspeed/moe/pipeline/stage_groups.py", ["make_stage_groups", "StageGroups"]),
            ("deepspeed/moe/pipeline/stage_model.py", ["StageModel"]),
            ("deepspeed/moe/pipeline/stage_engine.py", ["StageEngine", "StepLoss"]),
            ("deepspeed/moe/pipeline/partition.py", ["cut"]),
            ("deepspeed/moe/pipeline/schedule.py", ["one_forward_one_backward"]),
        ],
    ),
    "optimizer": (
        "API: the optimizer",
        "Import these names from `deepspeed.ops.adafactor`. In a DeepSpeed configuration the "
        'optimizer\'s type is `"Adafactor"`. [AdaFactor](../adafactor.md) describes the algorithm.',
        [
            ("deepspeed/ops/adafactor/optimizer.py", ["Adafactor"]),
            ("deepspeed/ops/adafactor/tags.py", ["tag_partition", "PartitionTag"]),
            (
                "deepspeed/ops/adafactor/checkpoint.py",
                ["state_for_checkpoint", "load_state_from_checkpoint"],
            ),
        ],
    ),
}


def exit_codes() -> str:
    """The page of exit codes, from the table in dsmoe/common/errors.py."""
    from dsmoe.common.errors import EXIT_CODES

    rows = [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()]
    return "\n".join(
        [
            "# Exit codes",
            "",
            MADE,
            "A code means the same in every command. A command ends with 0 when it has done what "
            "it was asked to do, and only then. A failure that is expected prints one line on "
            "standard error: what was found, what was expected and what to do. The reason of a run "
            "that failed is in its row, its record and the table on standard output. A Python "
            "traceback is a bug of this project (Python's exit code for it is 1).",
            "",
            "| code | meaning |",
            "| --- | --- |",
            *rows,
            "",
            "`dsmoe apply PATH --status` returns 0 for an applied series and 20 to 24 for the "
            "other states. "
            "With `--all`, `dsmoe run` continues after a case that failed and returns 1 at the "
            "end.",
            "",
            "Codes that changed in version 0.2.0 are in the changelog.",
            "",
        ]
    )


def commands() -> str:
    """The page of commands, from their parsers."""
    from dsmoe.cli import COMMANDS

    parts = [
        "# Commands\n",
        MADE,
        "`dsmoe COMMAND` is the same as `python -m dsmoe COMMAND` in a clone. `apply_patch.py`, "
        "`get_hostfiles.py` and `run_deepspeed_benchmark.sh` are the commands `apply`, `hosts` "
        "and `run`. [Exit codes](exit-codes.md) mean the same in every command.\n",
    ]
    for name, words in COMMANDS.items():
        parser = importlib.import_module(f"dsmoe.commands.{name}").make_parser(f"dsmoe {name}")
        parts += [f"## dsmoe {name}\n", words + "\n", "| option | meaning |\n| --- | --- |"]
        for action in parser._actions:
            if action.dest == "help" or action.help == argparse.SUPPRESS:
                continue
            choices = "\\|".join(map(str, action.choices or ()))
            shown = action.metavar or choices or (action.nargs != 0 and action.dest.upper()) or ""
            value = shown[0] if isinstance(shown, tuple) else shown
            if action.nargs in ("+", "*"):
                value += " ..."
            elif action.nargs == "?" and action.option_strings:
                value = f"[{value}]"
            option = action.option_strings[-1] if action.option_strings else ""
            meaning = (action.help or "").replace("%%", "%").replace("|", "\\|")
            parts.append(f"| `{f'{option} {value}'.strip()}` | {meaning} |")
        parts.append("")
    return "\n".join(parts)


def api_page(title: str, words: str, sources: list[tuple[str, list[str]]]) -> str:
    """One page: each name with its signature and docstring, from the source."""
    parts = [f"# {title}\n", MADE, words + "\n"]
    for file, names in sources:
        tree = ast.parse((OVERLAY / file).read_text(encoding="utf-8"))
        found = {n.name: n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        for name in names:
            if name not in found:
                raise SystemExit(f"make_reference.py: found no {name} in overlay/{file}")
            parts += entry(found[name], file)
    return "\n".join(parts)


def entry(node: Definition, file: str) -> Iterator[str]:
    """The Markdown of a function, or of a class with its public methods and fields."""
    yield f"## {node.name}\n"
    yield f"`{file}`\n"
    if isinstance(node, ast.FunctionDef):
        yield signature(node)
        yield prose(node)
        return
    init = method(node, "__init__")
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
    yield signature(init, node.name) if init else f"```python\nclass {node.name}\n```\n"
    yield prose(node)
    if init and ast.get_docstring(init):
        yield prose(init)
    if fields:
        yield from field_table(node)
    for item in node.body:
        if not isinstance(item, ast.FunctionDef) or item.name.startswith("_"):
            continue
        if not ast.get_docstring(item):
            continue
        yield f"### {node.name}.{item.name}\n"
        decorators = [ast.unparse(decorator) for decorator in item.decorator_list]
        yield "A property.\n" if "property" in decorators else signature(item)
        yield prose(item)


def method(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == name:
            return item
    return None


def signature(node: ast.FunctionDef, name: str | None = None) -> str:
    """A code block: the function's name, arguments and result, one argument a line if long."""
    arguments = ast.unparse(node.args)
    arguments = re.sub(r"^(self|cls)(, )?", "", arguments)
    arguments = ", ".join(
        re.sub(r"=(?=[^=]*$)", " = ", piece) if ": " in piece else piece
        for piece in split_arguments(arguments)
    )
    result = f" -> {ast.unparse(node.returns)}" if node.returns and not name else ""
    line = f"{name or node.name}({arguments}){result}"
    if len(line) > 88:
        pieces = split_arguments(arguments)
        line = f"{name or node.name}(\n    " + ",\n    ".join(pieces) + f",\n){result}"
    return f"```python\n{line}\n```\n"


def split_arguments(text: str) -> list[str]:
    """Cut at the commas outside brackets."""
    pieces: list[str] = []
    depth = begin = 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            pieces.append(text[begin:place].strip())
            begin = place + 1
    return [*pieces, text[begin:].strip()]


def field_table(node: ast.ClassDef) -> Iterator[str]:
    """The annotated fields of a class: name, type, default, and the string that follows it."""
    yield "| field | type | default | meaning |\n| --- | --- | --- | --- |"
    for item, after in zip(node.body, [*node.body[1:], None]):
        if not isinstance(item, ast.AnnAssign):
            continue
        words = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            words = markup(" ".join(inspect.cleandoc(str(after.value.value)).split()))
        kind = ast.unparse(item.annotation).replace("|", "\\|")
        default = f"`{ast.unparse(item.value)}`" if item.value is not None else "required"
        yield f"| `{ast.unparse(item.target)}` | `{kind}` | {default} | {words} |"
    yield ""


def prose(node: Definition) -> str:
    """A docstring as Markdown: its sections become bold words with a list below."""
    out: list[str] = []
    section = in_item = False
    for line in markup(ast.get_docstring(node) or "").splitlines():
        name = re.match(r" {4}(\w[\w., ]*?): (.*)", line)
        if re.fullmatch(SECTIONS, line):
            out += [*([""] if out and out[-1] else []), f"**{line[:-1]}**", ""]
            section, in_item = True, False
        elif section and line.startswith("    "):
            if name:
                out.append(f"- `{name[1]}`: {name[2]}")
            else:
                out.append(("  " if in_item else "- ") + line.strip())
            in_item = True
        else:
            section = section and not line
            out.append(line)
    return "\n".join(out).strip() + "\n"


def markup(text: str) -> str:
    """reStructuredText's roles and double backquotes as Markdown's code."""
    text = re.sub(r":(?:func|class|meth|mod|data|attr):`~?\.?([^`]+)`", r"`\1`", text)
    return text.replace("``", "`")


def pages() -> dict[Path, str]:
    sys.path.insert(0, str(ROOT))
    made = {
        REFERENCE / "exit-codes.md": exit_codes(),
        REFERENCE / "commands.md": commands(),
    }
    for name, (title, words, sources) in PAGES.items():
        made[REFERENCE / "api" / f"{name}.md"] = api_page(title, words, sources)
    return {path: text.rstrip() + "\n" for path, text in made.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the reference pages made from the code.")
    parser.add_argument("--check", action="store_true", help="exit 1 if a page is out of date")
    check = parser.parse_args().check
    stale = 0
    for path, text in pages().items():
        name = path.relative_to(ROOT)
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        if check:
            print(f"{name} is out of date; run: python scripts/make_reference.py", file=sys.stderr)
            stale = 1
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"wrote {name}")
    return stale


if __name__ == "__main__":
    sys.exit(main())
