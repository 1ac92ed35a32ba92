"""``dsmoe bench --hosts``: settings of a run over hosts of namespaces, their bytes and seconds."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsmoe.benchmark.cases.suites import SUITES
from dsmoe.commands import options as shared
from dsmoe.common.arguments import OneLineParser, count, whole
from dsmoe.common.errors import EnvironmentProblem, UsageError
from dsmoe.common.files import expanded
from dsmoe.common.interrupts import StopSignals
from dsmoe.common.output import line_printer
from dsmoe.common.places import checkout_folder

if TYPE_CHECKING:  # importing these takes time and packages that --help does not need
    from dsmoe.benchmark.link.settings import Setting
    from dsmoe.benchmark.preflight.machine import Machine

OUTPUT = "results/bench-hosts"
# How long a run is and what it reads is no setting.
SHARED = ("--steps", "--warmup", "--seed", "--global-batch")


def add_options(parser: argparse.ArgumentParser, what: Any) -> None:
    """``--hosts`` to the group ``what``, of which one is given, and what goes with it."""
    hosts = parser.add_argument_group("hosts of namespaces (as root, with iproute2)")
    what.add_argument(
        "--hosts",
        type=functools.partial(whole, least=1, most=64),
        metavar="H",
        help="H hosts are made on this machine, each with its own network and name.",
    )
    add = hosts.add_argument
    add("--per-host", type=count, metavar="N", help="A host has N processes or GPUs (default: 1).")
    add(
        "--rate",
        metavar="RATE",
        help="A host's link carries so much in either direction, such as 25gbit or 100mbit "
        "(default: no limit).",
    )
    add(
        "--delay",
        metavar="TIME",
        help="A packet takes so long from host to host, such as 50us (default: no delay).",
    )
    add(
        "--setting",
        action="append",
        metavar="WORDS",
        help="These options of dsmoe run, without dashes, make one setting, such as "
        "'zero-stage=1 no-remat'; given again, they make another. Options given outside of it are "
        "for all settings.",
    )
    add(
        "--suite",
        choices=list(SUITES),
        help="The case comes from this suite (default: tuned on GPUs, smoke without).",
    )
    shared.add_text_options(parser)
    add("--json", action="store_true", help="Each setting is one JSON object on a line.")
    parser.set_defaults(changes=shared.add_changes(parser, lists=True))


def refuse_without(options: argparse.Namespace) -> None:
    """Raises UsageError for an option that says nothing without --hosts."""
    given = [name for name, _ in _given(options)]
    for name in ("per_host", "rate", "delay", "setting", "suite", "data", "tokenizer", "json"):
        if getattr(options, name):
            given.append("--" + name.replace("_", "-"))
    for name in given:
        if name != "--steps":
            raise UsageError(f"{name} is for --hosts alone; add --hosts, or leave it out")


def run(options: argparse.Namespace) -> int:
    """Run every setting on hosts of namespaces; 1 if one failed. Raises DsmoeError."""
    from dsmoe.benchmark.link import measure, table
    from dsmoe.benchmark.preflight.machine import this_machine
    from dsmoe.benchmark.run import patched_deepspeed
    from dsmoe.hosts.spaces.link import Link
    from dsmoe.hosts.spaces.namespace_cluster import HostCluster, unavailable

    say = line_printer(options.json)
    if options.at_least:
        raise UsageError("--at-least is not for --hosts; leave one out")
    link = Link(options.rate, options.delay)
    per_host = options.per_host or 1
    machine = this_machine()
    settings, words = settings_of(options, machine)
    reason = unavailable()
    if reason:
        raise EnvironmentProblem(
            f"--hosts: {reason}; expected Linux, root and iproute2: run it as root on such a "
            "machine, or dsmoe run on real hosts"
        )
    patched_deepspeed.ensure(checkout_folder(), say)
    found = []
    variables = measure.host_variables(options.hosts, per_host, machine.device)
    with StopSignals() as stop:
        cluster = HostCluster(options.hosts, link, variables)
        try:
            how = "ssh and pdsh" if cluster.with_ssh else "a launcher in each namespace, no ssh"
            hosts = "1 host" if options.hosts == 1 else f"{options.hosts} hosts"
            say(f"== {hosts} x {per_host}, link: {link.words} ({how})")
            output = options.output or Path(OUTPUT)
            place = measure.LinkPlace(cluster, per_host, machine.device, expanded(output), words)
            for number, setting in enumerate(settings, 1):
                say(f"== {number} of {len(settings)}: {setting.name}")
                found.append(measure.measure(setting, place, stop, say))
                if options.json:
                    print(json.dumps(found[-1].to_dict()), flush=True)
        finally:
            cluster.close()
            if found and not options.json:
                table.print_table(found, sys.stdout)
    batch = settings[0].case.global_batch_size
    say(
        f"{batch} sequences an iteration; bytes: the median of the link's counters\n"
        f"on {machine.instance}, torch {machine.versions['torch']}\nrecords: {output}"
    )
    return 1 if any(row.reason for row in found) else 0


def settings_of(
    options: argparse.Namespace, machine: Machine
) -> tuple[list[Setting], tuple[str, ...]]:
    """The settings, and the options that they share and that make none. Raises UsageError."""
    from dsmoe.benchmark.cases.choice import Changes, WantedCases, check_device, chosen_cases
    from dsmoe.benchmark.link.settings import Setting, combinations, common_batch
    from dsmoe.benchmark.predict.fastest import fastest_for

    processes = options.hosts * (options.per_host or 1)

    def on_hosts(processes: int) -> int:
        return options.per_host or 1

    suite = options.suite or ("tuned" if machine.device == "cuda" else "smoke")
    words = ["--suite", suite]
    axes: dict[str, list[str]] = {}
    for name, values in _given(options):
        if name in SHARED and len(values) == 1:
            words += [name, values[0]]
        else:
            axes[name] = values
    words += ["--data", *options.data] if options.data else []
    words += ["--tokenizer", options.tokenizer] if options.tokenizer else []
    words += ["--text-field", options.text_field]
    parser = OneLineParser(prog="dsmoe bench", add_help=False)
    shared.add_changes(parser)
    parser.add_argument("--suite")
    shared.add_text_options(parser)

    def changes(*more: str) -> Changes:
        return shared.changes_of(parser.parse_args([*words, *more]))

    combined = combinations(axes, options.setting or [])
    memory = machine.hardware.get("device_memory_bytes")
    [plain] = chosen_cases(WantedCases(processes, suite), machine.device, memory, on_hosts)
    batch = common_batch(plain, [vars(changes(*more)) for more in combined])
    if options.global_batch is None and batch != plain.global_batch_size:
        words += ["--global-batch", str(batch)]
    fastest = fastest_for(None, machine.device, machine.gpu, memory)
    settings = []
    for more in combined:
        wanted = WantedCases(processes, suite, changes=changes(*more))
        [case] = chosen_cases(wanted, machine.device, memory, on_hosts, fastest)
        settings.append(Setting(more, case))
    check_device([s.case for s in settings], machine.device, machine.gpus or None)
    return settings, tuple(words)


def _given(options: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """The options of a setting that were given, each with its values; none for a switch."""
    found = []
    for action in options.changes:
        value = getattr(options, action.dest)
        if value is None or (action.nargs == 0 and value != action.const):
            continue
        values = [] if action.nargs == 0 else value if isinstance(value, list) else [str(value)]
        found.append((action.option_strings[0], values))
    return found
