"""The three front doors of an installed dsmoe, and what it is made of.

python -m dsmoe apply-patch PATH ...     as python apply_patch.py
python -m dsmoe get-hostfiles ...        as python get_hostfiles.py
python -m dsmoe run NUM_GPUS ...         as ./run_deepspeed_benchmark.sh, in this environment
python -m dsmoe --version [--json]       versions, licences and ids of the parts
"""

from __future__ import annotations

import sys

from dsmoe.common.output import needs_no_reader

USAGE = "usage: python -m dsmoe {apply-patch,get-hostfiles,run} ... | --version [--json] | --help"


@needs_no_reader
def main(argv: list[str] | None = None) -> int:
    """Run one front door; its exit code. 2 for an unknown one."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    door, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if door == "apply-patch":
        from dsmoe.commands.apply import main as apply_patch

        return apply_patch(rest)
    if door == "get-hostfiles":
        from dsmoe.commands.hosts import main as get_hostfiles

        return get_hostfiles(rest)
    if door == "run":
        from dsmoe.commands.run import main as run

        return run(rest)
    if door == "--version" and set(rest) <= {"--json"}:
        from dsmoe.commands.version import show

        return show(as_json=bool(rest))
    if door in ("-h", "--help"):
        print(__doc__)
        print("each door has its own --help")
        return 0
    print(f"dsmoe: found {' '.join(arguments) or 'no arguments'}; {USAGE}", file=sys.stderr)
    return 2
