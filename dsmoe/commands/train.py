"""``dsmoe train``: trains a model and keeps it."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

from dsmoe.commands import launching
from dsmoe.commands import options as shared
from dsmoe.commands import run as run_command
from dsmoe.common.arguments import OneLineParser, count, file_name, positive
from dsmoe.common.errors import UsageError, exit_code_lines
from dsmoe.common.files import expanded
from dsmoe.common.kernel_choice import check_kernels

if TYPE_CHECKING:
    from dsmoe.benchmark.launchers.interface import Launcher

NEEDS = run_command.NEEDS
EVERY = 1000

EXAMPLES = """examples:
  dsmoe train 1 --steps 200 --save models/first        # with no GPU: a small model
  dsmoe train 2 --data ~/books --steps 5000 --every 500 --save models/books
  dsmoe train 1 --load models/first --steps 400        # go on to iteration 400
  dsmoe train 8 --model 2.4B --data ~/books --steps 20000 --save models/large
  dsmoe train 32 --save models/32 --launcher slurm --print-sbatch

"""


def make_parser(prog: str) -> OneLineParser:
    """The options of the command."""
    parser = OneLineParser(
        prog=prog,
        description="Trains the MoE language model of a case and keeps checkpoints, from which "
        "the same command\ngoes on. Ctrl-C or SIGTERM saves first; a second one ends at once.",
        epilog=EXAMPLES + exit_code_lines("train"),
    )
    words = "The training ends after iteration N, counted from its very start, also with --load."
    shared.add_case_options(
        parser, {"--steps": words, "--all": shared.UNUSED, "--warmup": shared.UNUSED}
    )
    parser.add_argument("--model", metavar="NAME", help="The model is this size of the paper.")
    rate = parser.add_argument_group("learning rate (default: the case's own, constant)")
    rate.add_argument("--learning-rate", type=positive, metavar="X", help="The rate is X.")
    rate.add_argument(
        "--rate-warmup",
        type=count,
        default=0,
        metavar="N",
        help="The rate rises over the first N iterations (DeepSpeed's WarmupLR).",
    )
    shared.add_text_options(parser)
    keep = parser.add_argument_group("checkpoints")
    keep.add_argument(
        "--save",
        type=file_name,
        metavar="DIR",
        help="Checkpoints go to this folder (default: that of --load).",
    )
    keep.add_argument(
        "--every",
        type=count,
        default=EVERY,
        metavar="N",
        help=f"A checkpoint is made, and the held-out loss taken, every N iterations and at the "
        f"end (default: {EVERY}).",
    )
    keep.add_argument(
        "--load",
        type=file_name,
        metavar="DIR",
        help="The training goes on from the last checkpoint of this folder, also on another "
        "number of processes.",
    )
    keep.add_argument(
        "--tensorboard",
        type=file_name,
        metavar="DIR",
        help="Event files for TensorBoard go to this folder: loss, held-out loss, rate, tokens "
        "per second, expert load, dropped share.",
    )
    launching.add_print_sbatch(parser, "--print-sbatch")
    run_command.add_places(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Train, and keep what was trained."""
    check_kernels(os.environ)
    if options.print_sbatch:
        return launching.print_sbatch("train", options)
    if options.all:
        raise UsageError("--all: a training has one case; leave it out")
    if options.warmup is not None:
        raise UsageError("--warmup is for dsmoe run, which measures; leave it out")
    save, load = options.save or options.load, options.load
    if save is None:
        raise UsageError("found neither --save nor --load; expected --save DIR")
    from dsmoe.model.checkpoint_folder import tokenizer_to_go_on
    from dsmoe.model.kept_run import Plan, SavingStop, train_and_keep

    tokenizer = options.tokenizer
    if load:
        tokenizer = tokenizer_to_go_on(expanded(load), tokenizer)
    board = _whole(options.tensorboard)
    if board:
        run_command.check_tensorboard()
        run_command.make_folder(board)
    # The event files are not DeepSpeed's, and nothing is measured: the benchmark's options are off.
    off = {"tensorboard": None, "warmup": 0, "dry_run": False, "resume": False, "output": save}
    off.update(tokenizer=tokenizer, link=None)
    resolved = argparse.Namespace(**{**vars(options), **off})
    code = launching.follow(resolved)
    if code is not None:
        return code
    stop = SavingStop()

    def train(launcher: Launcher, reason: str) -> int:
        request = run_command.request_of(resolved, launcher, reason)
        [(case, layout)] = request.cases
        if options.learning_rate:
            case = dataclasses.replace(case, learning_rate=options.learning_rate)
        plan = Plan(expanded(save), options.every, _whole(load), board, options.rate_warmup)
        request = dataclasses.replace(request, cases=((case, layout),))
        return train_and_keep(request, plan, stop)

    with stop:
        return launching.launched(resolved, train)


def _whole(path: Path | None) -> Path | None:
    return expanded(path) if path else None
