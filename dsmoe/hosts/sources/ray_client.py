"""A process of its own that asks a running Ray cluster for its nodes.

Run by path, ``python ray_client.py ADDRESS``, by ray.py, for three reasons: Ray's
connection cannot be interrupted when an address hangs, it aborts the process on some failures, and
it writes to the terminal. Each answer is one line of standard output: MARK and a JSON object,
either ``{"nodes": [{"id", "alive", "address", "gpus", "cpus", "free", "head"}, ...]}`` or
``{"error", "kind"}``. It answers once at the start and once for each line on standard input, and
ends with its input. What Ray itself prints goes to standard error (see :func:`_own_output`).
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any, TextIO

MARK = "dsmoe-ray-answer "


def nodes(ray: Any, gcs_host: str) -> list[dict[str, Any]]:
    """All nodes that the cluster remembers, dead ones too; Ray's own floats.

    ``free``: of ``gpus`` and ``cpus``, what nobody holds; None where this Ray does not say.
    """
    rows = []
    free = _free(ray)
    for node in ray.nodes():
        resources = node.get("Resources") or {}
        address = str(node.get("NodeManagerAddress", ""))
        rows.append(
            {
                "id": str(node.get("NodeID", "")),
                "alive": bool(node.get("Alive", False)),
                "address": address,
                "gpus": float(resources.get("GPU", 0)),
                "cpus": float(resources.get("CPU", 0)),
                "free": free.get(str(node.get("NodeID", ""))),
                # Releases without the mark run the control store on the head.
                "head": "node:__internal_head__" in resources or address == gcs_host,
            }
        )
    return rows


def _free(ray: Any) -> dict[str, dict[str, float]]:
    """Node -> its free GPUs and CPUs; empty where this release has no such call."""
    try:
        found = ray._private.state.available_resources_per_node()
        return {
            str(node): {"gpus": float(has.get("GPU", 0)), "cpus": float(has.get("CPU", 0))}
            for node, has in found.items()
        }
    except Exception:  # it is not a promised interface
        return {}


def main(address: str) -> int:
    """Connect to the cluster at ``address`` and answer until the input ends."""
    out = _own_output()
    if address == "local":
        refused = {"error": "the address 'local' would start a cluster", "kind": "Refused"}
        return _answer(out, refused, 1)
    try:
        import ray

        ray.init(
            address=address,
            logging_level=logging.CRITICAL,
            configure_logging=False,
            log_to_driver=False,
        )
        context = ray.get_runtime_context()
        gcs_host = str(getattr(context, "gcs_address", "")).rpartition(":")[0]
        _answer(out, {"nodes": nodes(ray, gcs_host)}, 0)
        for _ in sys.stdin:
            _answer(out, {"nodes": nodes(ray, gcs_host)}, 0)
        ray.shutdown()
    except BaseException as error:
        # Whatever Ray raises, SystemExit included, is an answer to the parent, not a traceback.
        return _answer(out, {"error": str(error), "kind": type(error).__name__}, 1)
    return 0


def _own_output() -> TextIO:
    """Standard output for answers alone: file 1 becomes standard error for everybody else.

    Ray prints from a thread of its own (that a node died, with the last lines of its log), and its
    bytes landed inside an answer.
    """
    sys.stdout.flush()
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return own


def _answer(out: TextIO, body: dict[str, Any], code: int) -> int:
    print(MARK + json.dumps(body), file=out, flush=True)
    return code


if __name__ == "__main__":
    # Run by path, so the first entry is this folder: its modules must not hide others' names.
    if sys.path and Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
        del sys.path[0]
    sys.exit(main(sys.argv[1]))
