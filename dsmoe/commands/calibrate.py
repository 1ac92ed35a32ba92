"""``dsmoe calibrate``: measures this machine's rates, for the time that a plan predicts."""

from __future__ import annotations

import argparse
import errno
import json

from dsmoe.common.arguments import OneLineParser, add_json, count, file_name
from dsmoe.common.errors import EnvironmentProblem, ResultsError, exit_code_lines
from dsmoe.common.files import expanded, refuse_output, write_output

NEEDS = ("torch", "numpy", "psutil")

EXAMPLES = """examples:
  dsmoe calibrate                                two minutes on two CPU cores, two to four on GPUs
  dsmoe calibrate --output here.json
  dsmoe plan 2 --cluster here.json               the time of a run on this machine

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
    from dsmoe.benchmark.calibrate.start import measured_rows
    from dsmoe.benchmark.predict.rates.choose import calibrated_file
    from dsmoe.benchmark.predict.rates.measured import cluster_of
    from dsmoe.benchmark.preflight.machine import this_machine
    from dsmoe.benchmark.preflight.probe import cores
    from dsmoe.benchmark.run import patched_deepspeed
    from dsmoe.common.places import checkout_folder

    output = expanded(options.output or calibrated_file())
    if options.output is None:
        output.parent.mkdir(parents=True, exist_ok=True)
    try:
        refuse_output(output)
        if not output.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "its folder does not exist")
    except OSError as error:
        raise ResultsError(
            f"--output {output}: found that it cannot be written ({error.strerror}); expected the "
            "name of a file in a folder that takes one"
        ) from error
    machine = this_machine()
    processes = options.processes or (machine.gpus or min(4, cores()))
    if machine.gpus and processes > machine.gpus:
        raise EnvironmentProblem(
            f"--processes {processes}: this machine has {machine.gpus} GPUs; name at most that many"
        )
    say = print if not options.json else (lambda line: None)
    checkout = checkout_folder()
    if machine.device == "cpu":  # whose layers are measured as a whole
        patched_deepspeed.ensure(checkout, say=say)
    kept = output.with_name(output.name + ".rows")
    kept.unlink(missing_ok=True)
    rows = measured_rows(machine.device, processes, cores(), kept, say, checkout)
    failed = [row for row in rows if "error" in row]
    if len(failed) == len(rows):
        reason = failed[0]["error"] if failed else "no process wrote a row"
        raise EnvironmentProblem(f"no rate could be measured: {reason}")
    cluster = cluster_of(machine, processes, rows)
    write_output(output, (json.dumps(cluster, indent=1) + "\n").encode("ascii"))
    kept.unlink()
    if options.json:
        print(json.dumps(cluster))
        return 0
    print(f"{len(rows) - len(failed)} rows; {len(failed)} could not be measured")
    for row in failed[:10]:
        print(f"  {row.get('kind')} {row.get('name', '')}: {row['error'][:100]}")
    for name, rate in cluster["rates"].items():
        print(f"  {name:<28}{rate['value']:>12.5g} {rate['unit']}")
    print(f"wrote {output}")
    return 0
