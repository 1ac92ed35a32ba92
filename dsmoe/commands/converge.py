"""``dsmoe converge``: does the MoE model learn more than a dense one of equal FLOPs?"""

from __future__ import annotations

import argparse

from dsmoe.benchmark.cases.case import SECOND_EXPERT_POLICIES
from dsmoe.commands import options as shared
from dsmoe.common.arguments import OneLineParser, add_output, count, not_empty, positive, seed
from dsmoe.common.errors import UsageError, exit_code_lines
from dsmoe.common.files import expanded
from dsmoe.common.interrupts import StopSignals
from dsmoe.convergence.arms import ARMS, ArmSetting
from dsmoe.convergence.defaults import DEFAULTS, RATE_WARMUP

NEEDS = ("torch", "filelock", "git", "numpy", "psutil", "rich")
SEED = 1234
TEXT_BYTES = 200_000_000
OUTPUT = "results/convergence"
SIZES = (
    # option, setting, what it is
    ("hidden-size", "hidden_size", "The model's layers have this width"),
    ("num-layers", "num_layers", "The model has N layers, and every second one has experts"),
    ("num-heads", "num_heads", "Attention has N heads"),
    ("sequence-length", "sequence_length", "A sequence has N tokens"),
    ("num-experts", "num_experts", "A mixture layer has N experts"),
    ("global-batch", "global_batch_size", "An iteration has N sequences"),
    ("micro-batch-size", "micro_batch_size", "A micro-batch has N sequences, which share capacity"),
    ("steps", "steps", "A training has N iterations"),
    ("eval-every", "eval_every", "The held-out loss is taken every N iterations"),
    ("eval-windows", "eval_windows", "The held-out loss is taken over N sequences"),
)

EXAMPLES = """examples:
  dsmoe converge                        # all arms on this machine, small on a CPU
  dsmoe converge --data ~/venv/lib/python3.12/site-packages --steps 1200
  dsmoe converge --arms moe dense --seeds 1 2 3 --output results/seeds
  dsmoe converge --resume               # go on: finished runs are not repeated
  dsmoe converge --plot-only            # table and figure from what is there

"""


def make_parser(prog: str) -> OneLineParser:
    """The options of the command."""
    parser = OneLineParser(
        prog=prog,
        description="Trains the MoE model and a dense one of equal FLOPs per token on the same "
        "text and compares\ntheir held-out loss; records expert load and dropped tokens; draws "
        "the figure.",
        epilog=EXAMPLES + exit_code_lines("converge"),
    )
    what = parser.add_argument_group("what is compared")
    add = what.add_argument
    add(
        "--arms",
        nargs="+",
        choices=list(ARMS),
        default=list(ARMS),
        metavar="ARM",
        help=f"The comparison has these arms (default: all of {', '.join(ARMS)}).",
    )
    add(
        "--seeds",
        nargs="+",
        type=seed,
        default=[SEED],
        metavar="N",
        help=f"Every arm is trained with each of these seeds (default: {SEED}).",
    )
    add(
        "--data",
        nargs="+",
        type=not_empty,
        default=[],
        metavar="PATH",
        help="The models are trained on these files, folders and globs; of .jsonl and .jsonl.gz "
        "each line is a document.",
    )
    shared.add_text_field(what)
    add(
        "--text-bytes",
        type=count,
        default=TEXT_BYTES,
        metavar="N",
        help=f"At most N bytes of the text are taken (default: {TEXT_BYTES:,}).",
    )
    add = parser.add_argument_group("size (default on a GPU / on a CPU)").add_argument
    for option, name, words in SIZES:
        add(f"--{option}", dest=name, type=count, metavar="N", help=f"{words} ({_both(name)}).")
    add(
        "--learning-rate",
        type=positive,
        metavar="X",
        help=f"AdaFactor's rate, relative to the size of a weight ({_both('learning_rate')}).",
    )
    add(
        "--precision",
        choices=("fp32", "bf16", "fp8"),
        help=f"The training computes in this precision ({_both('precision')}).",
    )
    add(
        "--second-expert-policy",
        choices=SECOND_EXPERT_POLICIES,
        default="sampling",
        help="Training chooses a token's second expert by this policy (default: sampling, as "
        "DeepSpeed does).",
    )
    add(
        "--capacity-factor",
        type=positive,
        default=1.0,
        metavar="X",
        help="An expert has room for X times its even share (default: 1).",
    )
    results = parser.add_argument_group("results")
    add_output(results, OUTPUT, "Curves, summary and figure go to this folder")
    add = results.add_argument
    add("--resume", action="store_true", help="Runs that --output has finished are not repeated.")
    add("--plot-only", action="store_true", help="Nothing is trained; --output is drawn again.")
    add("--no-plot", action="store_true", help="Nothing is drawn, which needs no matplotlib.")
    add(
        "--time-out",
        type=positive,
        default=600.0,
        metavar="SECONDS",
        help="An arm without a new evaluation for so long is ended (default: 600).",
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """Train the arms, print the table, draw the figure."""
    from dsmoe.benchmark.preflight.machine import this_machine
    from dsmoe.convergence.comparison_run import Comparison, run_all, show

    if options.plot_only:
        if options.no_plot:
            raise UsageError("--plot-only and --no-plot: give one of them")
        return show(options.output, draw=True)
    machine = this_machine()
    wanted = Comparison(
        arms=tuple(ARMS[name] for name in dict.fromkeys(options.arms)),
        seeds=tuple(dict.fromkeys(options.seeds)),
        setting=setting_of(options, machine.device),
        machine=machine,
        data=tuple(str(expanded(p).absolute()) for p in options.data),
        text_bytes=options.text_bytes,
        text_field=options.text_field,
        output=options.output,
        time_out=options.time_out,
        resume=options.resume,
        draw=not options.no_plot,
    )
    with StopSignals() as stop:
        return run_all(wanted, stop)


def setting_of(options: argparse.Namespace, device: str) -> ArmSetting:
    """The options over the defaults of ``device``. Raises UsageError."""
    values = {
        name: default if getattr(options, name) is None else getattr(options, name)
        for name, default in DEFAULTS[device].items()
    }
    return ArmSetting(
        **values,
        rate_warmup=max(1, round(RATE_WARMUP * values["steps"])),
        second_expert_policy=options.second_expert_policy,
        capacity_factor=options.capacity_factor,
        compiled=device == "cuda",
    )


def _both(name: str) -> str:
    return " / ".join(str(DEFAULTS[device][name]) for device in DEFAULTS)
