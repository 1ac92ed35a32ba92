"""Collectives of several processes, by size of message and of group."""

from __future__ import annotations

import datetime
import statistics
import time
from typing import Any, Callable

from dsmoe.benchmark.calibrate.clock import Clock
from dsmoe.benchmark.calibrate.shapes import Shapes

#: An all-to-all between computations, as experts have it on a CPU: each process waits for the
#: other's computation to end, and for a core to be free for the messages.
IN_STEP = "all-to-all-in-step"
#: Products of 512 x 512 matrices before each, about 5 ms on one core.
PRODUCTS = 2


def measure_collectives(clock: Clock, shapes: Shapes, rank: int, world: int) -> None:
    """Every collective in groups of the first 2, 4, ... processes; process 0 keeps the rows.

    ``bytes`` is what each process hands over. Every process takes the same number of calls, so no
    window depends on its own clock.
    """
    import torch.distributed as dist

    backend = "nccl" if clock.cuda else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=60))
    sizes = [n for n in (2, 4, 8, 16) if n < world] + [world]
    for size in sizes:
        group = dist.new_group(list(range(size)))
        if rank < size:
            for message in shapes.messages:
                for name, make in _operations(clock, group, size, message).items():
                    what = {"kind": "collective", "name": name, "group": size, "bytes": message}
                    _timed(clock, make, {**what, "backend": backend}, rank)
        dist.barrier()
    dist.destroy_process_group()


def _operations(
    clock: Clock, group: Any, size: int, message: int
) -> dict[str, Callable[[], Callable[[], object]]]:
    import torch.distributed as dist

    torch = clock.torch
    kind = torch.float16 if clock.cuda else torch.float32
    count = message // (2 if clock.cuda else 4) // size * size

    def empty(n: int) -> Any:
        return torch.zeros(n, dtype=kind, device=clock.device)

    def all_reduce() -> Callable[[], object]:
        x = empty(count)
        return lambda: dist.all_reduce(x, group=group)

    def reduce() -> Callable[[], object]:
        x = empty(count)
        return lambda: dist.reduce(x, 0, group=group)

    def broadcast() -> Callable[[], object]:
        x = empty(count)
        return lambda: dist.broadcast(x, 0, group=group)

    def all_to_all() -> Callable[[], object]:
        x, y = empty(count), empty(count)
        return lambda: dist.all_to_all_single(y, x, group=group)

    def all_gather() -> Callable[[], object]:
        x = empty(count)
        y = [torch.empty_like(x) for _ in range(size)]
        return lambda: dist.all_gather(y, x, group=group)

    def reduce_scatter() -> Callable[[], object]:
        x, y = empty(count), empty(count // size)
        return lambda: dist.reduce_scatter_tensor(y, x, group=group)

    found = {
        "all-reduce": all_reduce,
        "reduce": reduce,
        "broadcast": broadcast,
        "all-to-all": all_to_all,
        "all-gather": all_gather,
    }
    if clock.cuda:  # gloo has none
        found["reduce-scatter"] = reduce_scatter
    else:
        found[IN_STEP] = all_to_all
    return found


def _timed(clock: Clock, make: Any, what: dict[str, Any], rank: int) -> None:
    windows, calls = 3, 5
    try:
        call = make()
        call()
        if what["name"] == IN_STEP:
            found = _between_products(clock, call, windows, 2 * calls)
        else:
            found = []
            for _ in range(windows):
                clock.wait()
                begin = time.perf_counter()
                for _ in range(calls):
                    call()
                clock.wait()
                found.append((time.perf_counter() - begin) * 1000 / calls)
    except Exception as error:
        if rank == 0:
            clock.row(**what, error=f"{type(error).__name__}: {error}"[:300])
        return
    if rank == 0:
        clock.row(**what, ms=statistics.median(found), least_ms=min(found), n=windows * calls)


def _between_products(clock: Clock, call: Any, windows: int, calls: int) -> list[float]:
    """Milliseconds of a call by window, where every process computes before each."""
    torch = clock.torch
    x, weight = torch.randn(512, 512), torch.randn(512, 512) / 23.0

    def compute() -> float:
        begin = time.perf_counter()
        for _ in range(PRODUCTS):
            torch.mm(x, weight)
        return time.perf_counter() - begin

    compute()
    found = []
    for _ in range(windows):
        begin, own = time.perf_counter(), 0.0
        for _ in range(calls):
            own += compute()
            call()
        found.append((time.perf_counter() - begin - own) * 1000 / calls)
    return found
