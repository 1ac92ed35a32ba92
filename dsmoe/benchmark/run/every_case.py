"""All cases of a request, one after another: what is checked before, and what is printed."""

from __future__ import annotations

import shlex
import time
from datetime import timedelta
from typing import Sequence

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.cases.choice import in_words
from dsmoe.benchmark.plan.between_hosts import exchange_warning
from dsmoe.benchmark.preflight import local_checks
from dsmoe.benchmark.preflight.host_checks import refuse_unfit
from dsmoe.benchmark.results.record import RunRecord
from dsmoe.benchmark.results.store import RECORDS, ROWS
from dsmoe.benchmark.results.terminal import print_report, report_lines
from dsmoe.benchmark.run import patched_deepspeed, resume
from dsmoe.benchmark.run.layout import Layout
from dsmoe.benchmark.run.one_case import prepare_text, run_case
from dsmoe.benchmark.run.request import Request
from dsmoe.common.interrupts import StopSignals
from dsmoe.common.places import import_root
from dsmoe.common.tables import columns
from dsmoe.common.typed import program
from dsmoe.hosts.host import Host

FINISHED, RUN_FAILED = 0, 1


def run_cases(request: Request, stop: StopSignals) -> int:
    """Run every case; RUN_FAILED if one failed. Raises DsmoeError before anything is started."""
    local_checks.quick(request.output)
    step(f"DeepSpeed checkout {request.checkout} ({request.checkout_reason})")
    patched_deepspeed.ensure(request.checkout)
    patched_deepspeed.let_import(request.checkout)
    trees = patched_deepspeed.trees(request.checkout)
    layouts = [layout for _, layout in request.cases]
    check_layout(max(layouts, key=lambda layout: layout.hosts), request)
    begin = time.monotonic()
    records = [_run(case, layout, request, trees, stop) for case, layout in request.cases]
    print()
    if len(records) > 1:
        print("\n".join(table_of(records)))
        print(f"\nin all: {timedelta(seconds=round(time.monotonic() - begin))}")
    output = shlex.quote(str(request.output))
    figure = " --cpu" if request.machine.device == "cpu" else ""
    processes = request.cases[0][0].parallel.processes
    print(f"see the results:             {program('report')} {output}")
    print(f"                             {program('plot')} {output}{figure}")
    if not all(record.status == "ok" for record in records):
        return RUN_FAILED
    print(f"keep a model that generates: {program('train')} {processes} --steps 200 --save model")
    return FINISHED


def check_layout(layout: Layout, request: Request) -> None:
    """Check a run's hosts by the way of its launcher, unless it runs on this machine alone.

    Raises EnvironmentProblem; what is no reason to stop is printed.
    """
    way = request.launcher.way()
    if way is None:
        return
    step(f"hosts of {request.launcher.name}: {', '.join(layout.names)}")
    if layout.hosts == 1 and request.launcher.distant_head(layout) is None:
        return
    hosts = [Host(name, layout.devices) for name in layout.names]
    for line in refuse_unfit(hosts, way, import_root(), request.checkout):
        print(f"  warning: {line}")


def _run(
    case: Case,
    layout: Layout,
    request: Request,
    trees: patched_deepspeed.Trees,
    stop: StopSignals,
) -> RunRecord:
    step(f"text: {', '.join(request.text.paths) or 'the Python standard library'}")
    content = prepare_text(request, case).info
    print(f"  {content.train_tokens:,} tokens to train on, {content.held_out_tokens:,} held out")
    words = in_words(case, "GPU" if request.machine.device == "cuda" else "CPU process")
    if request.resume:
        record = resume.finished(request.output, case, request.machine.device, trees, content)
        if record is not None:
            step(f"finished already, skipped: {words} ({request.output / record.run_folder})")
            return record
    warning = exchange_warning(case, layout.devices, request.machine.device, request.checkout)
    if warning:
        print(f"  warning: {warning}", flush=True)
    step(f"training {words}")
    record = run_case(case, layout, request, trees, content, stop)
    print()
    print_report(record)
    print(f"\nrow in {request.output / ROWS}, record in {request.output / RECORDS}")
    if request.machine.device == "cpu":
        print("a CPU run: marked smoke-cpu, so that it never passes for a case of the paper")
    return record


def table_of(records: Sequence[RunRecord]) -> list[str]:
    """A line for each run, of at most 80 columns: the reason why one failed is in its own table."""
    lines = [("case", "devices", "tokens/s", "s/iteration", "last loss", "held-out", "ended")]
    for record in records:
        figures = dict(report_lines(record))
        lines.append(
            (
                str(record.case["model"]["name"]),
                str(record.num_hosts * record.num_devices_per_host),
                figures.get("tokens/s", "-"),
                f"{record.median_seconds:.4g}" if record.median_seconds else "-",
                figures.get("last loss", "-"),
                figures.get("held-out loss", "-"),
                record.status,
            )
        )
    return columns(lines)


def step(words: str) -> None:
    """Print what begins now."""
    print(f"== {words}", flush=True)
