"""``dsmoe profile``: where one training step spends the GPU's time."""

from __future__ import annotations

import argparse
import json
import os
import sys

from dsmoe.commands import options as shared
from dsmoe.common.arguments import OneLineParser, file_name
from dsmoe.common.errors import EnvironmentProblem, ResultsError, UsageError, exit_code_lines
from dsmoe.common.files import refuse_output, write_output
from dsmoe.common.kernel_choice import check_kernels
from dsmoe.common.places import checkout_folder, work_folder

NEEDS = ("torch", "filelock", "git", "numpy", "psutil", "rich")

EXAMPLES = """examples:
  dsmoe profile 1 --suite tuned
  dsmoe profile 1 --micro-batch-size 32 --no-compiled --write profile.json
  torchrun --nproc_per_node 2 -m dsmoe profile 2 --suite tuned

"""


def make_parser(prog: str) -> OneLineParser:
    """The options of the command."""
    parser = OneLineParser(
        prog=prog,
        description="Profiles one step of a case on a GPU, cut down to four micro-batches, and "
        "prints its time by\nkind of work, the longest kernels, and what the GPU waited for.",
        epilog=EXAMPLES + exit_code_lines("profile"),
    )
    unused = ("--all", "--steps", "--warmup")
    shared.add_case_options(parser, dict.fromkeys(unused, shared.UNUSED))
    shared.add_text_options(parser)
    parser.add_argument(
        "--write", type=file_name, metavar="FILE", help="The rows are written to this file as JSON."
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """Profile one step. Raises EnvironmentProblem where there is no GPU."""
    check_kernels(os.environ)
    given = [name for name in ("all", "steps", "warmup") if getattr(options, name)]
    if given:
        words = ", ".join(f"--{name}" for name in given)
        raise UsageError(f"{words}: one step of one case is profiled; leave it out")
    if options.write:
        try:
            refuse_output(options.write)
        except OSError as error:
            raise ResultsError(
                f"--write {options.write}: found that it cannot be written ({error.strerror}); "
                "expected the name of a file in a folder that takes one"
            ) from error
    import torch

    from dsmoe.benchmark.cases.choice import chosen_cases
    from dsmoe.benchmark.run import patched_deepspeed
    from dsmoe.benchmark.run.request import Text
    from dsmoe.benchmark.timing.profile import cut, print_tables, profile

    if not torch.cuda.is_available():
        raise EnvironmentProblem(
            "found no CUDA device, and a GPU's time is what is profiled; run it on a GPU"
        )
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29511")
    checkout = checkout_folder()
    if os.environ["RANK"] == "0":
        patched_deepspeed.ensure(checkout)
    sys.path.insert(0, str(checkout))
    memory = torch.cuda.get_device_properties(0).total_memory
    [whole, *_] = chosen_cases(shared.wanted_of(options), "cuda", memory)
    if whole.parallel.pipeline_parallel_size > 1:
        raise UsageError("a pipeline is not profiled; expected --pipeline 1")
    case = cut(whole)
    text = Text.of(shared.text_paths(options), options.tokenizer, options.text_field)
    rows = profile(case, text.options(), work_folder() / "text")
    if os.environ["RANK"] == "0":
        print_tables(rows)
        if options.write:
            try:
                write_output(options.write, json.dumps(rows).encode("ascii"))
            except OSError as error:
                raise ResultsError(f"--write {options.write}: {error.strerror}") from error
    sys.stdout.flush()
    os._exit(0)  # gloo's threads can abort an orderly end; see train/training.py
