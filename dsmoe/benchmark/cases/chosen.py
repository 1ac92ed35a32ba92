"""The options of ``./run_deepspeed_benchmark.sh``, and the cases that they name."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from dsmoe.benchmark.cases.suites import (
    ADAFACTOR_MODES,
    MOE_LAYERS,
    OPTIMIZERS,
    PAPER_SUITES,
    PRECISIONS,
    SUITES,
    Case,
    ModelCase,
    find_case,
    for_memory,
)
from dsmoe.benchmark.run.one_case import TIME_OUT_SECONDS
from dsmoe.common.arguments import OneLineParser
from dsmoe.common.errors import UsageError

RUN_FAILED = 1

EXAMPLES = f"""examples:
  ./run_deepspeed_benchmark.sh 8                  the artifact's case for 8 GPUs
  ./run_deepspeed_benchmark.sh 1                  with no GPU: a small model on the CPU
  ./run_deepspeed_benchmark.sh 2 --data ~/books   two processes, on your own text
  ./run_deepspeed_benchmark.sh 8 --all --resume   the suite's cases up to 8 GPUs, unfinished ones
  ./run_deepspeed_benchmark.sh 64 --suite paper --plan     what it needs; nothing is started
  ./run_deepspeed_benchmark.sh 1 --zero-stage 1 --steps 50 --output /tmp/zero1

exit codes: 0 the run finished, {RUN_FAILED} it failed (a row with -1 and the reason is written),
2 wrong arguments, 8 something is missing on this machine, 9 the text cannot be used, 10 the
results cannot be written; docs/exit-codes.md has them all. Ctrl-C ends every process: 130."""


def parser() -> argparse.ArgumentParser:
    """The parser of the front door; it raises UsageError where argparse would print the usage."""
    top = OneLineParser(
        prog="run_deepspeed_benchmark.sh",
        description="Train DeepSpeed's MoE language model and record how fast it went.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = top.add_argument
    add("gpus", metavar="NUM_GPUS", type=_count, help="GPUs, or processes where there is no GPU")
    what = top.add_argument_group("what to run (default: the suite's case as it is)")
    add = what.add_argument
    add("--suite", choices=list(SUITES), help="default: artifact on GPUs, smoke without")
    add("--all", action="store_true", help="every case of the suite up to NUM_GPUS")
    add("--zero-stage", type=int, metavar="{0,1,2}", help="default: the case's, 2")
    add("--precision", choices=PRECISIONS)
    # two options, since argparse has both in one from Python 3.9 on only
    add("--remat", action="store_true", default=None, help="recompute activations")
    add("--no-remat", dest="remat", action="store_false", default=None, help="keep them")
    add("--micro-batches", type=_count, metavar="N", help="accumulated in one iteration")
    add("--micro-batch-size", type=_count, metavar="N", help="sequences of one, on one process")
    add("--expert-parallel", type=_count, metavar="N", help="processes that share the experts")
    add("--num-experts", type=_count, metavar="N", help="of a mixture layer; not of the paper's")
    add("--optimizer", choices=OPTIMIZERS)
    add(
        "--moe-layer",
        choices=MOE_LAYERS,
        help="deepspeed: the base's own layer, which always samples the second expert",
    )
    add("--adafactor-mode", choices=ADAFACTOR_MODES, help="artifact: as the paper's runs had it")
    for name, on, off in SPEED_SWITCHES:
        field = name.replace("-", "_")
        add(f"--{name}", dest=field, action="store_true", default=None, help=on)
        add(f"--no-{name}", dest=field, action="store_false", default=None, help=off)
    add("--steps", type=_count, metavar="N", help="measured iterations (suites: at least 5)")
    add("--warmup", type=_whole, metavar="N", help="iterations before, not measured")
    add("--seed", type=_seed, metavar="N", help="of weights and order of the text")
    add("--data", nargs="+", default=[], metavar="PATH", help="text: files, folders, globs")
    add("--tokenizer", metavar="FILE", help="a tokenizers JSON file; default: bytes")
    how = top.add_argument_group("how")
    add = how.add_argument
    add("--output", type=Path, default=Path("results"), metavar="DIR", help="default: results")
    add("--resume", action="store_true", help="skip cases that --output has finished already")
    add("--dry-run", action="store_true", help="print the launcher's command and write nothing")
    add("--plan", action="store_true", help="print memory and communication; start nothing")
    add("--model", metavar="NAME", help="with --plan: a named size, on any number of GPUs")
    add("--global-batch", type=_count, metavar="N", help="with --plan --model: sequences a step")
    add("--device-memory", type=_positive, metavar="GIB", help="with --plan: of one GPU")
    add(
        "--time-out",
        type=_positive,
        default=TIME_OUT_SECONDS,
        metavar="SECONDS",
        help="end a run without a new iteration for so long; the first may take three times that "
        f"and at least 300 (default: {TIME_OUT_SECONDS:g})",
    )
    add("--hostfile", type=Path, metavar="FILE", help="hosts (get_hostfiles.py); default: this one")
    add("--master-addr", metavar="ADDR", help="of the first host; default: where ssh reaches it")
    add("--port", type=_count, metavar="N", help="of the process group; default: a free one")
    add("--tensorboard", type=Path, metavar="DIR", help="event files by DeepSpeed, for TensorBoard")
    return top


SPEED_SWITCHES = (
    ("compiled", "train through torch.compile", "eager operations"),
    ("flat-gradients", "ZeRO takes a micro-batch's gradients together", "the base's hooks"),
    ("cuda-graph", "start a micro-batch's kernels by one call", "one by one"),
)


def _whole(text: str, least: int = 0) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return value


def _seed(text: str) -> int:
    value = _whole(text)
    if value >= 2**63:  # torch's generators take 64 bits
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not a whole number below 2**63")
    return value


def _count(text: str) -> int:
    return _whole(text, 1)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


# Options with which a case was not measured at the larger micro-batch.
_OTHER_MEMORY = ("num_experts", "precision", "remat", "compiled", "moe_layer", "zero_stage")


def chosen_cases(options: argparse.Namespace, device: str, memory: int | None = None) -> list[Case]:
    """The suite's case for NUM_GPUS, or with ``--all`` those up to it, with the options laid on.

    ``memory``: bytes of a GPU, where known, for :func:`suites.for_memory`.

    Raises UsageError for a case that the suite lacks, that cannot be, or that needs GPUs.
    """
    suite = options.suite or ("artifact" if device == "cuda" else "smoke")
    if not options.all:
        cases = [find_case(suite, options.gpus)]
        memory = None if any(getattr(options, n) is not None for n in _OTHER_MEMORY) else memory
        return [with_options(for_memory(case, memory), options) for case in cases]
    cases = [case for case in SUITES[suite] if case.parallel.processes <= options.gpus]
    if not cases:
        find_case(suite, options.gpus)  # says what the suite has
    return [with_options(for_memory(case, memory), options) for case in cases]


def check_device(cases: list[Case], device: str, available: int | None) -> None:
    """Raises UsageError for cases that this machine cannot run.

    ``available`` GPUs are here; None where the processes run on the CPU.
    """
    for case in cases:
        if device == "cpu" and case.suite in ("artifact", "paper", "tuned"):
            raise UsageError(
                f"suite {case.suite} needs GPUs and none was found here; expected --suite smoke "
                "(the default without GPUs), or --plan to see what the case needs"
            )
        if available is not None and case.parallel.processes > available:
            raise UsageError(
                f"{case.parallel.processes} GPUs are asked for and this machine has {available}; "
                "name at most that many"
            )


def with_options(case: Case, options: argparse.Namespace) -> Case:
    """``case`` with the options of the command line. Raises UsageError where they do not fit."""
    parallel = {
        "zero_stage": options.zero_stage,
        "expert_parallel": options.expert_parallel,
    }
    changes = {
        "model": _model(case, options.num_experts),
        "parallel": dataclasses.replace(case.parallel, **_given(parallel)),
        "precision": options.precision,
        "remat": options.remat,
        "micro_batches": _micro_batches(case, options),
        "optimizer": options.optimizer,
        "moe_layer": options.moe_layer,
        "second_choice": "sampling" if options.moe_layer == "deepspeed" else None,
        "adafactor_mode": options.adafactor_mode,
        "compiled": options.compiled,
        "flat_gradients": options.flat_gradients,
        "cuda_graph": options.cuda_graph,
        "iterations": options.steps,
        "warmup": options.warmup,
        "seed": options.seed,
    }
    # Switched off with what they cannot go with, unless they were asked for: then it is refused.
    if options.zero_stage == 0 and options.flat_gradients is None:
        changes["flat_gradients"] = False
    if options.moe_layer == "deepspeed" and options.compiled is None:
        changes["compiled"] = False
    fast = [
        case.compiled if changes["compiled"] is None else changes["compiled"],
        case.flat_gradients if changes["flat_gradients"] is None else changes["flat_gradients"],
        not options.tensorboard,
    ]
    if not all(fast) and options.cuda_graph is None:
        changes["cuda_graph"] = False
    if options.adafactor_mode and (options.optimizer or case.optimizer) != "adafactor":
        raise UsageError("--adafactor-mode is for --optimizer adafactor alone; leave one out")
    return dataclasses.replace(case, **_given(changes))


def _model(case: Case, experts: int | None) -> ModelCase | None:
    """The case's model with another number of experts, under a name that says so."""
    if experts is None:
        return None
    if case.suite in PAPER_SUITES:
        raise UsageError(
            f"--num-experts: the models of suite {case.suite} are the paper's, and its figure is "
            "drawn from them; take --suite tuned or smoke"
        )
    return dataclasses.replace(case.model, name=f"{case.model.name}-E{experts}", experts=experts)


def _micro_batches(case: Case, options: argparse.Namespace) -> int | None:
    size = options.micro_batch_size
    if size is None:
        return options.micro_batches
    count, rest = divmod(case.global_batch, case.parallel.processes * size)
    if rest or options.micro_batches not in (None, count):
        several = f"{options.micro_batches} times " if options.micro_batches else ""
        raise UsageError(
            f"--micro-batch-size {size}: {several}{size} sequences on {case.parallel.processes} "
            f"processes do not make the global batch of {case.global_batch}; give one of "
            "--micro-batches and --micro-batch-size, with a size that divides "
            f"{case.global_batch // case.parallel.processes}"
        )
    return count


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
