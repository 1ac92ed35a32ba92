"""``dsmoe export``: a trained model as files that need no DeepSpeed engine."""

from __future__ import annotations

import argparse

from dsmoe.common.arguments import OneLineParser, file_name
from dsmoe.common.errors import exit_code_lines
from dsmoe.common.files import expanded
from dsmoe.common.output import end_process
from dsmoe.common.typed import program

NEEDS = ("torch", "numpy", "git", "safetensors")

EXAMPLES = """examples:
  dsmoe export models/first --to exported
  dsmoe generate exported "def "

"""


def make_parser(prog: str) -> OneLineParser:
    """The options of the command."""
    parser = OneLineParser(
        prog=prog,
        description="Writes the last checkpoint of a folder as model.safetensors (whole weights by "
        "name, in the\nprecision of the training), config.json and the tokenizer. In Python: "
        "MoELM.from_exported(FOLDER).",
        epilog=EXAMPLES + exit_code_lines("export"),
    )
    parser.add_argument(
        "folder", type=file_name, metavar="DIR", help="The folder that dsmoe train --save wrote."
    )
    parser.add_argument(
        "--to", type=file_name, required=True, metavar="FOLDER", help="The files go there."
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """Export, and say what was written."""
    from dsmoe.model.checked import is_exported
    from dsmoe.model.opened import export_model

    to = expanded(options.to)
    older = is_exported(to)
    count = export_model(expanded(options.folder), to)
    if older:
        print(f"{to}: the older export that was there is replaced")
    print(f'{to}: {count:,} parameters; try: {program("generate")} {to} "def "')
    end_process(0)
