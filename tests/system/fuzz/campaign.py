"""``make fuzz``: the fuzzer for SECONDS, with a summary line at the end; 1 if something is wrong.

The first seed is the time, and is printed: ``--seed`` repeats a campaign.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[3]), str(Path(__file__).resolve().parents[2])]
SHOWN = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--cases", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    from support.fuzz import campaign

    campaign.preload_engine()
    print(f"seed {options.seed}", flush=True)
    done = campaign.run_cases(options.cases, options.seed, options.seconds)
    for case, end, what in done.found[:SHOWN]:
        print(f"-- {what}: {case}\n{end.err[-2500:]}")
    for name in done.changed[:SHOWN]:
        print(f"-- changed: {name}")
    print(done.summary())
    return 1 if done.found or done.changed else 0


if __name__ == "__main__":
    sys.exit(main())
