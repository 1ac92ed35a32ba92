"""The options of ``python -m dsmoe.convergence`` and the setting that they give."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dsmoe.benchmark.cases.chosen import _count, _positive, _whole
from dsmoe.benchmark.cases.suites import SECOND_CHOICES
from dsmoe.benchmark.run.one_case import TIME_OUT_SECONDS
from dsmoe.common.arguments import OneLineParser
from dsmoe.convergence.arms import ARMS, Setting

DEFAULT_ARMS = tuple(ARMS)
OUTPUT = Path("results/convergence")
TEXT_BYTES = 200_000_000
SEED = 1234
# The learning rate rises over this share of the steps.
RATE_WARMUP = 0.05

# Forty to sixty seconds an arm on one H100 with 300 steps, one to two minutes on two CPU cores.
DEFAULTS: dict[str, dict[str, Any]] = {
    "cuda": {
        "hidden": 512,
        "layers": 8,
        "heads": 8,
        "sequence": 512,
        "experts": 8,
        "batch": 128,
        "micro_batch": 64,
        "steps": 600,
        "eval_every": 25,
        "eval_windows": 512,
        "learning_rate": 1e-2,
        "precision": "bf16",
    },
    "cpu": {
        "hidden": 64,
        "layers": 4,
        "heads": 4,
        "sequence": 128,
        "experts": 8,
        "batch": 16,
        "micro_batch": 16,
        "steps": 300,
        "eval_every": 20,
        "eval_windows": 128,
        "learning_rate": 3e-2,
        "precision": "fp32",
    },
}

EXAMPLES = """examples:
  python -m dsmoe.convergence                     all arms on this machine, small on a CPU
  python -m dsmoe.convergence --data ~/venv/lib/python3.12/site-packages --steps 1200
  python -m dsmoe.convergence --arms moe dense --seeds 1 2 3 --output results/seeds
  python -m dsmoe.convergence --resume            go on: finished runs are not repeated
  python -m dsmoe.convergence --plot-only     table and figure from what is there

exit codes: 0 every arm finished, 1 one failed (the others go on), 2 wrong arguments, 8 something
is missing on this machine, 9 the text cannot be used, 10 results cannot be read or written;
docs/reference/exit-codes.md has them all. What is compared: docs/guide/convergence.md."""


def parser() -> argparse.ArgumentParser:
    """The parser of the command; it raises UsageError where argparse would print the usage."""
    top = OneLineParser(
        prog="python -m dsmoe.convergence",
        description="Train the MoE model and a dense one of equal FLOPs per token on the same text "
        "and compare their held-out loss; record expert load and dropped tokens; draw the figure.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = top.add_argument_group("what to compare")
    add = what.add_argument
    add(
        "--arms",
        nargs="+",
        choices=list(ARMS),
        default=list(DEFAULT_ARMS),
        metavar="ARM",
        help=f"default: all of {', '.join(ARMS)}",
    )
    add(
        "--seeds",
        nargs="+",
        type=_whole,
        default=[SEED],
        metavar="N",
        help=f"of weights and order of the text; every arm with each (default: {SEED})",
    )
    add("--data", nargs="+", default=[], metavar="PATH", help="text: files, folders, globs")
    add(
        "--text-bytes",
        type=_count,
        default=TEXT_BYTES,
        metavar="N",
        help=f"at most so much of the text (default: {TEXT_BYTES:,})",
    )
    size = top.add_argument_group("size (default on a GPU / on a CPU)")
    add = size.add_argument
    for name, words in (
        ("hidden", "model width"),
        ("layers", "layers, every second one a mixture of experts"),
        ("heads", "attention heads"),
        ("sequence", "tokens of a sequence"),
        ("experts", "experts of a mixture layer"),
        ("batch", "sequences of a step"),
        ("micro-batch", "sequences of one forward pass, the group that shares capacity"),
        ("steps", "optimizer steps"),
        ("eval-every", "steps between two evaluations"),
        ("eval-windows", "held-out sequences of an evaluation"),
    ):
        add(f"--{name}", type=_count, metavar="N", help=f"{words} ({_both(name)})")
    add(
        "--learning-rate",
        type=_positive,
        metavar="X",
        help=f"relative to the size of the weights ({_both('learning-rate')})",
    )
    add("--precision", choices=("fp32", "bf16"), help=f"({_both('precision')})")
    add(
        "--second-choice",
        choices=SECOND_CHOICES,
        default="sampling",
        help="in training (default: sampling, as DeepSpeed does)",
    )
    add("--capacity-factor", type=_positive, default=1.0, metavar="X", help="default: 1")
    how = top.add_argument_group("how")
    add = how.add_argument
    add("--output", type=Path, default=OUTPUT, metavar="DIR", help=f"default: {OUTPUT}")
    add("--resume", action="store_true", help="do not repeat runs that --output has finished")
    add("--plot-only", action="store_true", help="draw what --output holds; train nothing")
    add("--no-plot", action="store_true", help="train and draw nothing (needs no matplotlib)")
    add(
        "--time-out",
        type=_positive,
        default=TIME_OUT_SECONDS,
        metavar="SECONDS",
        help=f"end an arm without a new evaluation for so long (default: {TIME_OUT_SECONDS:g})",
    )
    return top


def setting(options: argparse.Namespace, device: str) -> Setting:
    """The options over the defaults of ``device``. Raises UsageError."""
    values = {
        name: default if getattr(options, name) is None else getattr(options, name)
        for name, default in DEFAULTS[device].items()
    }
    return Setting(
        **values,
        rate_warmup=max(1, round(RATE_WARMUP * values["steps"])),
        second_choice=options.second_choice,
        capacity_factor=options.capacity_factor,
        compiled=device == "cuda",
    )


def _both(name: str) -> str:
    return " / ".join(f"{DEFAULTS[device][name.replace('-', '_')]:}" for device in DEFAULTS)
