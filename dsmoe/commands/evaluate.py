"""``dsmoe evaluate``: how well a trained model predicts a text."""

from __future__ import annotations

import argparse
import dataclasses
import json

from dsmoe.commands import options as shared
from dsmoe.common.arguments import OneLineParser, add_json, count, file_name, not_empty
from dsmoe.common.errors import exit_code_lines
from dsmoe.common.files import expanded
from dsmoe.common.output import end_process

NEEDS = ("torch", "filelock", "git", "numpy", "rich")
EXAMPLES = """examples:
  dsmoe evaluate models/first
  dsmoe evaluate models/first --data ~/books/other.txt
  dsmoe evaluate exported --data ~/books --windows 100000 --json

"""


def make_parser(prog: str) -> OneLineParser:
    """The options of the command."""
    parser = OneLineParser(
        prog=prog,
        description="Prints loss, perplexity, bits a byte and expert load of a trained model on a "
        "text. Experts\nhave the capacity of the training.",
        epilog=EXAMPLES + exit_code_lines("evaluate"),
    )
    add = parser.add_argument
    add(
        "folder",
        type=file_name,
        metavar="DIR",
        help="The model: of dsmoe train or dsmoe export; its tokenizer makes the tokens.",
    )
    add(
        "--data",
        nargs="+",
        type=not_empty,
        default=[],
        metavar="PATH",
        help="The text is these files, folders and globs (default: what dsmoe train held out; of "
        "an exported model, what it holds out of the standard library).",
    )
    shared.add_text_field(parser)
    add(
        "--windows",
        type=count,
        metavar="N",
        help="At most N sequences are taken, evenly spaced (default: 512; of a folder of dsmoe "
        "train without --data those that its held-out loss is of, in the same batches).",
    )
    add_json(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Print the figures."""
    from dsmoe.benchmark.results.record import finite_or_none
    from dsmoe.common.places import work_folder
    from dsmoe.model.measured import measure
    from dsmoe.model.opened import open_model

    opened = open_model(expanded(options.folder))
    paths = [str(expanded(path).absolute()) for path in options.data]
    found = measure(opened, paths, work_folder() / "text", options.windows, options.text_field)
    if options.json:
        [perplexity] = finite_or_none([found.perplexity])  # that of a large loss overflows
        values = {**dataclasses.asdict(found), "perplexity": perplexity}
        print(json.dumps(values, allow_nan=False))
        end_process(0)
    print(f"model                         {opened.words}")
    print(f"text                          {found.text}")
    print(f"sequences                     {found.windows:,} of {found.of:,}")
    print(f"loss                          {found.loss:.4f} nats a token")
    print(f"perplexity                    {found.perplexity:.3f}")
    print(f"bits a byte                   {found.bits_per_byte:.4f}")
    for layer, shares in zip(opened.model.config.moe_layers, found.expert_load):
        least, most = min(shares), max(shares)
        print(
            f"expert load, layer {layer:<11}{least:.1%} to {most:.1%}, even {1 / len(shares):.1%}"
        )
    end_process(0)
