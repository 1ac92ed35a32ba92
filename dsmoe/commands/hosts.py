"""The command ``get_hostfiles.py``: arguments in, host files and an exit code out."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Sequence

from dsmoe.common.arguments import OneLineParser
from dsmoe.common.errors import DsmoeError, HostProblem, UsageError
from dsmoe.common.output import needs_no_reader
from dsmoe.hosts import identity, probe, writer
from dsmoe.hosts.host import Host, check_slots
from dsmoe.hosts.sources import choose
from dsmoe.hosts.sources.found import Found, settle

EPILOG = """\
examples:
  python get_hostfiles.py                              the running Ray cluster, the Slurm job, or
                                                       this machine: the first that is there
  python get_hostfiles.py --from ray --output deepspeed
  python get_hostfiles.py --hosts 10.0.0.1,10.0.0.2 --slots 8
  python get_hostfiles.py --hosts-file mpi_hosts --probe --dry-run

It writes 'hostfile' (all hosts) and 'hostfile_{N}node' for N from 1 to the number of hosts.

exit codes:
  0  written (or, with --dry-run, ready to be written)
  2  an option cannot be used
  3  the hosts cannot be used: malformed, one twice, no or unequal slot counts
  4  Ray or Slurm is missing, does not answer, or has no GPU
  5  a host died meanwhile, or does not answer --probe
  8  the folder cannot be written
  130  interrupted
After any of 2 to 8 the old files are as they were."""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    result = OneLineParser(
        prog="get_hostfiles.py",
        description="Write the host files that the DeepSpeed launcher needs for several hosts.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = result.add_argument
    add(
        "--from",
        dest="source",
        choices=("ray", "slurm", "list", "local"),
        help="take the hosts from here and nowhere else (default: the first that is present)",
    )
    group = result.add_mutually_exclusive_group()
    group.add_argument("--hosts", metavar="A,B:4", help="the hosts, with slots after a colon")
    group.add_argument(
        "--hosts-file",
        type=Path,
        metavar="FILE",
        help="a file of hosts: one a line, or an OpenMPI ('a slots=4') or MPICH ('a:4') host file",
    )
    add("--slots", metavar="N", help="slots (GPUs) of every host, whatever the source says")
    add("--allow-mixed", action="store_true", help="accept hosts with unequal slots")
    add("--ray-address", metavar="ADDR", help="default: RAY_ADDRESS, else the cluster running here")
    add("--ray-timeout", type=float, default=30.0, metavar="S", help="seconds (default: 30)")
    add(
        "--probe",
        type=int,
        nargs="?",
        const=22,
        metavar="PORT",
        help="first connect to the ssh port (default: 22) of every host",
    )
    add("--no-resolve", action="store_true", help="do not look for two names of one host")
    add("--output", type=Path, default=Path(), metavar="DIR", help="default: this folder")
    add("--dry-run", action="store_true", help="check everything, write nothing")
    add("--json", action="store_true", help="print one JSON object")
    return result


@needs_no_reader
def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code that its help lists."""
    as_json = "--json" in argv
    try:
        report = run(parser().parse_args(argv))
    except DsmoeError as error:
        print(f"get_hostfiles.py: error: {error}", file=sys.stderr)
        if as_json:
            print(json.dumps({"error": str(error), "exit_code": error.exit_code}))
        return error.exit_code
    except KeyboardInterrupt:
        print("get_hostfiles.py: interrupted; the old files are as they were", file=sys.stderr)
        return 130
    if as_json:
        print(json.dumps(report))
    else:
        _show(report)
    return 0


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Find, check and write; returns the report that ``--json`` prints. Raises DsmoeError."""
    slots = _slots(args.slots)
    if not 0 < args.ray_timeout <= 3600:
        raise UsageError(f"--ray-timeout: found {args.ray_timeout:g}, expected 1 to 3600 seconds")
    if args.probe is not None and not 1 <= args.probe <= 65535:
        raise UsageError(f"--probe: found {args.probe}, expected a port from 1 to 65535")
    found = choose.find(args)
    try:
        if not args.no_resolve:
            found.warnings += identity.refuse_same_machine(found.candidates)
        hosts = settle(found, slots, args.allow_mixed)
        if args.dry_run:
            _last_check(args, found, hosts)
            files = [args.output / name for name in writer.plan(hosts)]
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
        "checked_with": written.checked_with,
        "warnings": found.warnings + written.warnings,
        "dry_run": bool(args.dry_run),
    }


def _last_check(args: argparse.Namespace, found: Found, hosts: Sequence[Host]) -> None:
    found.recheck()
    if args.probe is not None:
        probe.refuse_silent([host.name for host in hosts], args.probe)


def _slots(text: str | None) -> int | None:
    try:
        return None if text is None else check_slots(text, "--slots")
    except HostProblem as error:
        raise UsageError(str(error)) from None


def _show(report: dict[str, Any]) -> None:
    for warning in report["warnings"]:
        print(f"get_hostfiles.py: warning: {warning}", file=sys.stderr)
    hosts = report["hosts"]
    total = sum(host["slots"] for host in hosts)
    unit = {"gpu": "GPU slots", "cpu": "CPU slots, no GPU"}.get(report["device"], "slots")
    print(f"hosts from {report['source']} ({report['reason']}): {len(hosts)} with {total} {unit}")
    for host in hosts:
        print(f"  {host['name']} slots={host['slots']}")
    verb = "would write" if report["dry_run"] else "wrote"
    files = report["files"]
    middle = f" to {files[-2]}" if len(files) > 2 else ""
    print(f"{verb} {files[-1]}, {files[0]}{middle}")
    for path in report["removed"]:
        print(f"removed {path}, of a bigger cluster")
