"""``make kills``: SIGKILLs and Ctrl-Cs at random moments, each with a summary line."""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[3]), str(Path(__file__).resolve().parents[2])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("patch", 500), ("append", 400), ("save", 60), ("runs", 40)):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N")
    parser.add_argument("--interrupts", type=int, default=200, metavar="N")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for each kind")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    from support import patched

    # As tests/conftest.py has it, for the processes that are started here.
    os.environ.update(PYTHONPATH=os.pathsep.join(sys.path[:2]), OMP_NUM_THREADS="1")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if options.save or options.runs:
        patched.importable()
    from support.fuzz import kept_kills, kills
    from support.patch_fixtures import make_template

    dice, bad = random.Random(options.seed), 0
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="dsmoe-kills-") as name:
        folder = Path(name)
        (folder / "p").mkdir()
        patched_kills = kills.patch_kills(make_template(folder), folder / "p", options.patch, dice)
        for asked, words, ends in (
            (options.patch, "kills of apply, --revert, --export", patched_kills),
            (options.append, "kills of append", kills.append_kills(folder, options.append, dice)),
            (options.save, "kills of saving", kept_kills.save_kills(folder, options.save, dice)),
            (options.runs, "kills of runs", kept_kills.run_kills(folder / "r", options.runs, dice)),
            (options.interrupts, "Ctrl-Cs", kills.interrupts(folder, options.interrupts, dice)),
        ):
            found: list[str] = []
            until = time.monotonic() + options.seconds
            for end in ends if asked else ():
                found.append(end)
                if len(found) % 20 == 0:
                    print(f"  {len(found)} of {asked} {words}", flush=True)
                if end not in ("", kills.BEFORE):  # told at once: a campaign may be stopped
                    print(f"-- {end}", flush=True)
                if time.monotonic() > until:
                    break
            before = found.count(kills.BEFORE)
            wrong = len([end for end in found if end and end != kills.BEFORE])
            early = f", {before} {kills.BEFORE}" if before else ""
            if asked:
                print(f"{len(found)} {words}: {wrong} bad ends{early}", flush=True)
            bad += wrong
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
