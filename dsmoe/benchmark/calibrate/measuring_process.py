"""One measuring process, started as a module by start_processes.py alone.

Its orders are one JSON object on standard input: ``device``, ``rank``, ``world``, ``seconds`` and
``file``, to which rows are added.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def main() -> None:
    orders = json.load(sys.stdin)
    begin = time.monotonic()
    import torch

    from dsmoe.benchmark.calibrate.clock import Clock
    from dsmoe.benchmark.calibrate.collectives import measure_collectives
    from dsmoe.benchmark.calibrate.device_rates import measure_device
    from dsmoe.benchmark.calibrate.layers import measure_layers
    from dsmoe.benchmark.calibrate.shapes import CPU, GPU

    cuda = orders["device"] == "cuda"
    rank, world = orders["rank"], orders["world"]
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    torch.manual_seed(1234)
    shapes = GPU if cuda else CPU
    with Path(orders["file"]).open("a", encoding="ascii") as out:
        clock = Clock(out, device, begin + orders["seconds"], world)
        if orders["collectives"]:
            measure_collectives(clock, shapes, rank, world)
        else:
            if not cuda:  # a GPU's operations take as long alone as in a step
                measure_layers(clock, shapes)
            measure_device(clock, shapes)
    sys.stdout.flush()
    os._exit(0)  # gloo's threads can abort an orderly end


if __name__ == "__main__":
    main()
