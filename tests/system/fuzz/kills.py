"""``make kills``: SIGKILLs and Ctrl-Cs at random moments, each with a summary line."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[3]), str(Path(__file__).resolve().parents[2])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("patch", 500), ("append", 500), ("interrupts", 200)):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    from support.fuzz import kills
    from support.patch_fixtures import make_template

    dice, bad = random.Random(options.seed), 0
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="dsmoe-kills-") as name:
        folder = Path(name)
        template = make_template(folder)
        patched = kills.patch_kills(template, folder / "p", options.patch, dice)
        for words, ends in (
            ("kills of apply, --revert, --export", patched),
            ("kills of append", kills.append_kills(folder, options.append, dice)),
            ("Ctrl-Cs", kills.interrupts(folder, options.interrupts, dice)),
        ):
            (folder / "p").mkdir(exist_ok=True)
            found = list(ends)
            before = found.count(kills.BEFORE)
            wrong = [end for end in found if end and end != kills.BEFORE]
            for end in wrong[:20]:
                print(f"-- {end}")
            early = f", {before} {kills.BEFORE}" if before else ""
            print(f"{len(found)} {words}: {len(wrong)} bad ends{early}", flush=True)
            bad += len(wrong)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
