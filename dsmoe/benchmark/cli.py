"""The command line of ``./run_deepspeed_benchmark.sh``: arguments in, exit code out."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from dsmoe.benchmark import checkout, run_case
from dsmoe.benchmark.report_table import print_report
from dsmoe.benchmark.results import RECORDS, ROWS
from dsmoe.benchmark.suites import PRECISIONS, SUITES, Case, find_case
from dsmoe.errors import DsmoeError, UsageError

RUN_FAILED = 1

EXAMPLES = f"""examples:
  ./run_deepspeed_benchmark.sh 8                  the artifact's case for 8 GPUs
  ./run_deepspeed_benchmark.sh 1                  with no GPU: a small model on the CPU
  ./run_deepspeed_benchmark.sh 2 --data ~/books   two processes, on your own text
  ./run_deepspeed_benchmark.sh 1 --zero-stage 1 --steps 50 --output /tmp/zero1

exit codes: 0 the run finished, {RUN_FAILED} it failed (a row with -1 and the reason is written),
2 wrong arguments, 8 something is missing on this machine, 9 the text cannot be used, 10 the
results cannot be written; docs/exit-codes.md has them all. Ctrl-C ends every process: 130."""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="run_deepspeed_benchmark.sh",
        description="Train DeepSpeed's MoE language model and record how fast it went.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = top.add_argument
    add("gpus", metavar="NUM_GPUS", type=_count, help="GPUs, or processes where there is no GPU")
    add("--suite", choices=list(SUITES), help="default: artifact on GPUs, smoke without")
    add("--data", nargs="+", default=[], metavar="PATH", help="text: files, folders, globs")
    add("--tokenizer", metavar="FILE", help="a tokenizers JSON file; default: bytes")
    add("--output", type=Path, default=Path("results"), metavar="DIR", help="default: results")
    add("--steps", type=_count, metavar="N", help="measured iterations")
    add("--zero-stage", type=int, choices=(0, 1, 2), help="default: the case's, 2")
    add("--precision", choices=PRECISIONS, help="default: the case's")
    add("--micro-batches", type=_count, metavar="N", help="accumulated in one iteration")
    add("--expert-parallel", type=_count, metavar="N", help="processes that share the experts")
    add("--seed", type=int, metavar="N", help="of weights and order of the text")
    return top


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def chosen_case(options: argparse.Namespace, device: str) -> Case:
    """The suite's case for NUM_GPUS with the options laid over it."""
    suite = options.suite or ("artifact" if device == "cuda" else "smoke")
    if device == "cpu" and suite != "smoke":
        raise UsageError(
            f"suite {suite} needs GPUs and none was found here; expected --suite smoke (the "
            "default without GPUs)"
        )
    case = find_case(suite, options.gpus)
    parallel = {
        "zero_stage": options.zero_stage,
        "expert_parallel": options.expert_parallel,
    }
    changes = {
        "parallel": dataclasses.replace(case.parallel, **_given(parallel)),
        "precision": options.precision,
        "micro_batches": options.micro_batches,
        "iterations": options.steps,
        "seed": options.seed,
    }
    return dataclasses.replace(case, **_given(changes))


def _given(options: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in options.items() if value is not None}


def run(options: argparse.Namespace) -> int:
    machine = run_case.this_machine()
    case = chosen_case(options, machine.device)
    available = machine.hardware.get("device_count")
    if available is not None and case.parallel.processes > available:
        raise UsageError(
            f"{case.parallel.processes} GPUs are asked for and this machine has {available}; "
            "name at most that many"
        )
    place = checkout.location()
    step(f"DeepSpeed checkout {place}")
    checkout.ensure(place)
    trees = checkout.trees(place)
    text = run_case.text_options(options.data, options.tokenizer)
    cache = checkout.ROOT / "build" / "text"
    step(f"text: {', '.join(options.data) or 'the Python standard library'}")
    content = run_case.prepare_text(cache, text, case).info
    print(f"  {content.train_tokens:,} tokens to train on, {content.held_out_tokens:,} held out")
    step(
        f"training {case.suite} {case.model.name} on {case.parallel.processes} "
        f"{'GPU' if machine.device == 'cuda' else 'CPU process'}(s): "
        f"ZeRO-{case.parallel.zero_stage}, expert parallel {case.parallel.expert_parallel}, "
        f"{case.optimizer}, {case.precision}"
    )
    record = run_case.run_case(case, machine, trees, options.output, cache, text)
    print()
    print_report(record)
    print(f"\nrow in {options.output / ROWS}, record in {options.output / RECORDS}")
    if machine.device == "cpu":
        print("a CPU run: marked smoke-cpu, so that it never passes for a case of the paper")
    return 0 if record.status == "ok" else RUN_FAILED


def step(words: str) -> None:
    print(f"== {words}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code; expected failures are one line on standard error."""
    options = parser().parse_args(arguments)
    try:
        return run(options)
    except DsmoeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ninterrupted: all processes of the run were ended", file=sys.stderr)
        return 130
