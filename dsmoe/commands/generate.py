"""``dsmoe generate``: text that a trained model writes."""

from __future__ import annotations

import argparse
import sys

from dsmoe.common.arguments import (
    OneLineParser,
    count,
    file_name,
    positive,
    seed,
    utf8_text,
)
from dsmoe.common.errors import exit_code_lines
from dsmoe.common.files import expanded
from dsmoe.common.output import end_process

NEEDS = ("torch", "numpy", "git")
TOKENS = 200

EXAMPLES = """examples:
  dsmoe generate models/first "def "
  dsmoe generate models/first "import " --tokens 50 --temperature 0.5 --top-k 40
  dsmoe generate exported "class " --top-p 0.9 --seed 7

"""


def make_parser(prog: str) -> OneLineParser:
    """The options of the command."""
    parser = OneLineParser(
        prog=prog,
        description="Continues a text with a trained model and prints it as it is made. Keys and "
        "values of earlier\ntokens are kept, and no expert drops a token.",
        epilog=EXAMPLES + exit_code_lines("generate"),
    )
    add = parser.add_argument
    add("folder", type=file_name, metavar="DIR", help="The model: of dsmoe train or dsmoe export.")
    add("text", type=utf8_text, metavar="TEXT", help="The model goes on from this text.")
    add(
        "--tokens",
        type=count,
        default=TOKENS,
        metavar="N",
        help=f"At most N tokens are made (default: {TOKENS}).",
    )
    add(
        "--temperature",
        type=positive,
        default=0.8,
        metavar="X",
        help="The logits are divided by X before a token is drawn (default: 0.8).",
    )
    add("--greedy", action="store_true", help="The likeliest token is taken, none is drawn.")
    add("--top-k", type=count, metavar="N", help="A token is one of the N likeliest.")
    add(
        "--top-p",
        type=positive,
        metavar="X",
        help="A token is one of the likeliest that together have the probability X.",
    )
    add("--seed", type=seed, default=0, metavar="N", help="The draws follow from N (default: 0).")
    add("--no-cache", action="store_true", help="The context is computed again for every token.")
    return parser


def run(options: argparse.Namespace) -> int:
    """Print the text."""
    from dsmoe.model.opened import open_model
    from dsmoe.model.written import Choice, write

    opened = open_model(expanded(options.folder))
    temperature = 0.0 if options.greedy else options.temperature
    how = Choice(temperature, options.top_k, options.top_p, options.seed, not options.no_cache)
    print(f"== {opened.words}", file=sys.stderr, flush=True)
    print(options.text, end="", flush=True)
    try:
        made, seconds = write(opened, options.text, options.tokens, how, _say)
    finally:
        print(flush=True)  # an error has a line of its own
    print(f"== {made} tokens, {made / seconds:,.0f} a second", file=sys.stderr)
    end_process(0)


def _say(text: str) -> None:
    print(text, end="", flush=True)
