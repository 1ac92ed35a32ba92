"""``dsmoe calibrate``: measures this machine's rates, for the time that a plan predicts."""

from __future__ import annotations

import argparse
import errno
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Mapping

from dsmoe.common.arguments import OneLineParser, add_json, count, file_name
from dsmoe.common.errors import EnvironmentProblem, ResultsError, exit_code_lines
from dsmoe.common.files import expanded, refuse_output, write_output
from dsmoe.common.interrupts import StopSignals
from dsmoe.common.output import line_printer

NEEDS = ("torch", "numpy", "psutil")

EXAMPLES = """examples:
  dsmoe calibrate                                # two minutes on two CPU cores, two to four on GPUs
  dsmoe calibrate --output here.json
  dsmoe plan 2 --cluster here.json               # the time of a run on this machine

"""


def make_parser(prog: str) -> OneLineParser:
    """The options of the command."""
    parser = OneLineParser(
        prog=prog,
        description="Measures what this machine does in a second: matrix products of the models' "
        "shapes, attention,\npasses over memory, starting an operation, and collectives of several "
        "processes; on a CPU also whole\nlayers of the model, for which the DeepSpeed checkout is "
        "built if it is missing. The file is a cluster\nfor dsmoe plan --cluster; every measured "
        "row is in it. Nothing else should run meanwhile.",
        epilog=EXAMPLES + exit_code_lines("calibrate"),
    )
    parser.add_argument(
        "--output",
        type=file_name,
        metavar="PATH",
        help="The rates are written to this file (default: cluster.json in the folder of this "
        "project's data, where dsmoe plan and dsmoe run find it).",
    )
    parser.add_argument(
        "--processes",
        type=count,
        metavar="N",
        help="Collectives are measured with up to N processes (default: the GPUs that are here, "
        "or on the CPU one for each core, at most 4).",
    )
    add_json(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Measure, and write the file. Raises DsmoeError."""
    from dsmoe.benchmark.calibrate.start_processes import measured_rows
    from dsmoe.benchmark.predict.rates.choose_cluster import calibrated_file
    from dsmoe.benchmark.predict.rates.cluster import NOT_MEASURED
    from dsmoe.benchmark.predict.rates.from_calibration import cluster_of
    from dsmoe.benchmark.predict.rates.remarks import FEW
    from dsmoe.benchmark.preflight.machine import this_machine
    from dsmoe.benchmark.preflight.probe import cores
    from dsmoe.benchmark.run import patched_deepspeed
    from dsmoe.common.places import checkout_folder

    output = expanded(options.output or calibrated_file())
    try:
        if options.output is None:
            output.parent.mkdir(parents=True, exist_ok=True)
        refuse_output(output)
        if not output.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "its folder does not exist")
    except OSError as error:
        option = "--output " if options.output else ""
        how = "" if options.output else ": give --output, or another folder as DSMOE_HOME"
        raise ResultsError(
            f"{option}{output}: found that it cannot be written ({error.strerror}); expected the "
            f"name of a file in a folder that takes one{how}"
        ) from error
    machine = this_machine()
    processes = options.processes or (machine.gpus or min(4, cores()))
    if machine.gpus and processes > machine.gpus:
        raise EnvironmentProblem(
            f"--processes {processes}: this machine has {machine.gpus} GPUs; name at most that many"
        )
    say = line_printer(options.json)
    checkout = checkout_folder()
    if machine.device == "cpu":  # whose layers are measured as a whole
        patched_deepspeed.ensure(checkout, say=say)
    folder = Path(tempfile.mkdtemp(prefix=f"{output.name:.200}.", dir=output.parent))
    try:
        with StopSignals() as stop:
            rows = measured_rows(machine.device, processes, cores(), folder, say, checkout, stop)
        failed = [row for row in rows if "error" in row]
        if len(failed) == len(rows):
            reason = failed[0]["error"] if failed else "no process wrote a row"
            raise EnvironmentProblem(f"no rate could be measured: {reason}")
        cluster = cluster_of(machine, processes, rows)
        _write(output, cluster, folder)
    except ResultsError:
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        print(json.dumps(cluster))
        return 0
    print(f"{len(rows) - len(failed)} rows; {len(failed)} could not be measured")
    if len(failed) > FEW * len(rows):
        print("note: predictions from so few are far off; repeat while nothing else runs here")
    for row in failed[:10]:
        print(f"  {row.get('kind')} {row.get('name', '')}: {row['error'][:100]}")
    for name, rate in cluster["rates"].items():
        note = "" if rate["source"] != NOT_MEASURED else ", not measured: a stand-in"
        print(f"  {name:<28}{rate['value']:>12.5g} {rate['unit']}{note}")
    print(f"wrote {output}")
    return 0


def _write(output: Path, cluster: Mapping[str, Any], folder: Path) -> None:
    """Raises ResultsError, which names the ``folder`` of the rows."""
    try:
        write_output(output, (json.dumps(cluster, indent=1) + "\n").encode("ascii"))
    except OSError as error:
        raise ResultsError(
            f"{output}: found that it cannot be written ({error.strerror}); what was measured is "
            f"in {folder}"
        ) from error
