"""``dsmoe hosts``: host files for the launcher, from the cluster at hand."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Sequence

from dsmoe.common.arguments import OneLineParser, add_json, file_name
from dsmoe.common.errors import HostProblem, UsageError, exit_code_lines
from dsmoe.hosts import identity, ssh_port, writer
from dsmoe.hosts.host import Host, check_slots
from dsmoe.hosts.sources import choose
from dsmoe.hosts.sources.found import Found, settle

NEEDS = ()

EXAMPLES = """examples:
  dsmoe hosts                              # the first of: the running Ray cluster,
                                           # the Slurm job, this machine
  dsmoe hosts --from ray --output deepspeed
  dsmoe hosts --hosts 10.0.0.1,10.0.0.2 --slots 8
  dsmoe hosts --hosts-file mpi_hosts --probe --dry-run

It writes 'hostfile' (all hosts) and 'hostfile_{N}node' (the first N) for each N up to 64, then for
powers of two and the number of hosts. After a failure the old files are as they were.

"""


def make_parser(prog: str) -> OneLineParser:
    """The options of the command."""
    parser = OneLineParser(
        prog=prog,
        description="Writes the host files that the DeepSpeed launcher needs for several hosts.",
        epilog=EXAMPLES.replace("dsmoe hosts", prog) + exit_code_lines("hosts"),
    )
    source = parser.add_argument_group("where the hosts come from")
    add = source.add_argument
    add(
        "--from",
        dest="source",
        choices=("ray", "slurm", "list", "local"),
        help="The hosts come from here and nowhere else (default: the first that is present).",
    )
    one = source.add_mutually_exclusive_group()
    one.add_argument(
        "--hosts", metavar="A,B:4", help="These are the hosts, with slots after a colon."
    )
    one.add_argument(
        "--hosts-file",
        type=file_name,
        metavar="FILE",
        help="This file has the hosts: one a line, or an OpenMPI ('a slots=4') or MPICH ('a:4') "
        "host file.",
    )
    add(
        "--ray-address",
        metavar="ADDR",
        help="Ray answers here (default: RAY_ADDRESS, else the cluster running on this machine).",
    )
    add(
        "--ray-timeout",
        type=float,
        default=30.0,
        metavar="S",
        help="Ray has to answer within S seconds (default: 30).",
    )
    slots = parser.add_argument_group("slots")
    slots.add_argument(
        "--slots", metavar="N", help="Every host has N slots (GPUs), whatever the source says."
    )
    slots.add_argument(
        "--allow-mixed", action="store_true", help="Hosts may have unequal numbers of slots."
    )
    checks = parser.add_argument_group("checks")
    checks.add_argument(
        "--probe",
        type=int,
        nargs="?",
        const=22,
        metavar="PORT",
        help="The ssh port (default: 22) of every host is connected to before anything is written.",
    )
    checks.add_argument(
        "--no-resolve", action="store_true", help="Two names of one host are not looked for."
    )
    checks.add_argument(
        "--dry-run", action="store_true", help="Everything is checked and nothing is written."
    )
    parser.add_argument(
        "--output",
        type=file_name,
        default=Path(),
        metavar="DIR",
        help="The files go to this folder (default: this one).",
    )
    add_json(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Find, check and write; print the report. Raises DsmoeError."""
    report = write_files(options)
    if options.json:
        print(json.dumps(report))
    else:
        _show(report)
    return 0


def write_files(args: argparse.Namespace) -> dict[str, Any]:
    """Find, check and write; the report that ``--json`` prints. Raises DsmoeError."""
    slots = _slots(args.slots)
    if not 0 < args.ray_timeout <= 3600:
        raise UsageError(f"--ray-timeout: found {args.ray_timeout:g}, expected 1 to 3600 seconds")
    if args.probe is not None and not 1 <= args.probe <= 65535:
        raise UsageError(f"--probe: found {args.probe}, expected a port from 1 to 65535")
    found = choose.find(
        choose.WantedHosts(
            source=args.source,
            hosts=args.hosts,
            hosts_file=args.hosts_file,
            ray_address=args.ray_address,
            ray_seconds=args.ray_timeout,
            any_device=slots is not None,
        )
    )
    try:
        if not args.no_resolve:
            found.warnings += identity.refuse_same_machine(found.candidates)
        hosts = settle(found, slots, args.allow_mixed)
        if args.dry_run:
            _last_check(args, found, hosts)
            files = [args.output / name for name in writer.file_sizes(len(hosts))]
            written = writer.Written(files=files)
        else:
            written = writer.write(args.output, hosts, lambda: _last_check(args, found, hosts))
    finally:
        found.close()
    return {
        "source": found.source,
        "reason": found.reason,
        "device": found.device,
        "hosts": [{"name": host.name, "slots": host.slots} for host in hosts],
        "files": [str(path) for path in written.files],
        "removed": [str(path) for path in written.removed],
        "warnings": found.warnings + written.warnings,
        "dry_run": bool(args.dry_run),
    }


def _last_check(args: argparse.Namespace, found: Found, hosts: Sequence[Host]) -> None:
    found.recheck()
    if args.probe is not None:
        ssh_port.refuse_silent([host.name for host in hosts], args.probe)


def _slots(text: str | None) -> int | None:
    try:
        return None if text is None else check_slots(text, "--slots")
    except HostProblem as error:
        raise UsageError(str(error)) from None


def _show(report: dict[str, Any]) -> None:
    for warning in report["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    hosts = report["hosts"]
    total = sum(host["slots"] for host in hosts)
    unit = {"gpu": "GPU slots", "cpu": "CPU slots, no GPU"}.get(report["device"], "slots")
    print(f"hosts from {report['source']} ({report['reason']}): {len(hosts)} with {total} {unit}")
    print("\n".join(f"  {host['name']} slots={host['slots']}" for host in hosts))
    verb = "would write" if report["dry_run"] else "wrote"
    files = report["files"]
    middle = f" to {files[-2]}" if len(files) > 2 else ""
    print(f"{verb} {files[-1]}, {files[0]}{middle}")
    for path in report["removed"]:
        print(f"removed {path}, of a former cluster")
