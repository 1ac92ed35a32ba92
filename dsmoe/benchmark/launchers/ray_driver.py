"""A process of its own that starts keepers by actors of a running Ray cluster, and watches them.

Run by path, ``python ray_driver.py ADDRESS``, by ray_actors.py: Ray's connection cannot be
interrupted when an address hangs, and it aborts the process on some failures. Standard input has
one line of JSON, ``{"hosts": [{"address", "resources", "environments"}, ...], "port", "wait"}``,
and stays open as long as the actors shall live. A placement group holds the resources of all
hosts, one bundle a host, each on another node. An actor in each bundle starts the host's keepers,
one for each of its ``environments``; a variable that is null there is unset. What fails is a line
that begins with ERROR.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any

ERROR = "dsmoe: error: "
PLACE_FAILED, ACTOR_DIED = 3, 4
KEEPER = str(Path(__file__).with_name("kept") / "keeper_process.py")


class Keepers:
    """The actor of a host: keepers as its children, which it leaves behind in no case."""

    def start(self, words: list[str], environments: list[dict[str, str | None]]) -> str:
        import os
        import subprocess

        # What Ray sets for its own workers stays out of what is trained; the GPUs it gave stay.
        own = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        own.pop("OMP_NUM_THREADS", None)
        self.processes = []
        for more in environments:
            found = {k: v for k, v in {**own, **more}.items() if v is not None}
            self.processes.append(subprocess.Popen(words, env=found))
        return os.uname().nodename

    def wait(self) -> list[int]:
        return [process.wait() for process in self.processes]

    def end(self) -> None:
        for process in self.processes:
            process.terminate()


def main(address: str) -> int:
    """Start the keepers, wait for their end; the exit code."""
    line = sys.stdin.readline()
    if not line:
        return 1
    spec = json.loads(line)
    try:
        import ray

        ray.init(
            address=address,
            logging_level=logging.CRITICAL,
            configure_logging=False,
            log_to_driver=False,
        )
        return run(ray, spec)
    except BaseException as error:
        # Whatever Ray raises, SystemExit included, is one line.
        _report(f"Ray at {address}: {type(error).__name__}: {_short(error)}")
        return 1


def run(ray: Any, spec: dict[str, Any]) -> int:
    from ray.util import get_node_ip_address
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    hosts = spec["hosts"]
    spread = "STRICT_SPREAD" if len(hosts) > 1 else "STRICT_PACK"
    group = ray.util.placement_group([host["resources"] for host in hosts], strategy=spread)
    if not group.wait(spec["wait"]):
        asked = "; ".join(f"{host['address']}: {host['resources']}" for host in hosts)
        _report(
            f"Ray did not place the processes within {spec['wait']} s ({asked}); another "
            "job may hold these: ray status"
        )
        return PLACE_FAILED
    hub = {"DSMOE_HUB": f"{get_node_ip_address()}:{spec['port']}"}
    actors = []
    for number, host in enumerate(hosts):
        where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number)
        # "wait" holds one thread, "end" needs another
        options = {"max_restarts": 0, "max_concurrency": 2, "scheduling_strategy": where}
        gpus, cpus = host["resources"].get("GPU", 0), host["resources"].get("CPU", 0)
        options.update(num_gpus=gpus, num_cpus=cpus)
        actors.append(ray.remote(Keepers).options(**options).remote())
    words = [sys.executable, KEEPER, "torchrun"]
    places = [[{**own, **hub} for own in host["environments"]] for host in hosts]
    ray.get([actor.start.remote(words, more) for actor, more in zip(actors, places)])
    waiting = {actor.wait.remote(): host["address"] for actor, host in zip(actors, hosts)}
    threading.Thread(target=_end_with_input, args=(actors,), daemon=True).start()
    while waiting:
        done, _ = ray.wait(list(waiting), num_returns=1)
        where = waiting.pop(done[0])
        try:
            ray.get(done[0])
        except ray.exceptions.RayActorError as error:
            _report(f"host {where}: Ray: {_short(error)}")
            return ACTOR_DIED
    return 0


def _end_with_input(actors: list[Any]) -> None:
    """The command is gone: end the keepers, whose actors would else live on for a while."""
    sys.stdin.read()
    for actor in actors:
        actor.end.remote()
    os._exit(1)


def _report(text: str) -> None:
    """Print what fails in one write, after a line end: a thread of Ray prints here too."""
    os.write(1, f"\n{ERROR}{text}\n".encode())


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


if __name__ == "__main__":
    # Run by path, so the first entry is this folder: its modules must not hide others' names.
    if sys.path and Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
        del sys.path[0]
    sys.exit(main(sys.argv[1]))
