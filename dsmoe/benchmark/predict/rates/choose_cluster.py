"""Which cluster a prediction is for, where none or one is named."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from pathlib import Path
from typing import Any

from dsmoe.benchmark.predict.rates.cluster import Cluster, load_cluster, names
from dsmoe.common.errors import UsageError
from dsmoe.common.kernel_choice import allowed_kernels
from dsmoe.common.places import work_folder

#: For a plan of GPUs on a machine whose GPU no cluster of this project has.
DEFAULT = "h100-400g"


def calibrated_file() -> Path:
    """Where dsmoe calibrate writes this machine's rates, unless another place is named."""
    return work_folder() / "cluster.json"


def cluster_for(name: str | None, device: str, gpu: str) -> Cluster | None:
    """The cluster ``name``; else this machine's calibrated one, else a known one with its ``gpu``.

    ``device``: cpu or cuda, what the case runs on. None: for a CPU there is none without
    calibration. Products are quack's where the cluster has their rate, unless DSMOE_KERNELS leaves
    them out. Raises UsageError.
    """
    found = load_cluster(name) if name is not None else known_here(device, gpu)
    if found is None and device == "cuda":
        found = load_cluster(DEFAULT)
    return found and found.with_quack(allowed_kernels(os.environ))


def known_here(device: str, gpu: str) -> Cluster | None:
    """This machine's calibrated rates, or those of a cluster with the same GPU; None: neither.

    A calibrated file that cannot be used, of another version or edited, ends nothing: it is said.
    """
    if calibrated_file().is_file():
        try:
            cluster = load_cluster(str(calibrated_file()))
        except UsageError as error:
            reason = str(error).replace("--cluster ", "", 1)
            print(f"not used: {reason}; make it again", file=sys.stderr)
            return None
        if cluster.device == device and cluster.gpu == gpu:
            return cluster
    if device == "cuda":
        for known in map(load_cluster, names()):
            if known.gpu == gpu:
                return known
    return None


def prediction_here(case: Any, devices: int, machine: Any) -> dict[str, Any]:
    """What a record keeps of the prediction for its own run; {} where no rates are known.

    ``devices`` processes are on each host of ``machine``'s kind. It is made after the run, whose
    row must not be lost for a file of rates that was edited or cut off: that is said instead.
    """
    try:
        found = _prediction(case, devices, machine)
        if found and not 0 < found["seconds"] < math.inf:
            raise ValueError(f"seconds would be {found['seconds']}")
        return found
    except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
        print(
            f"no prediction is kept: found {type(error).__name__} ({str(error)[:80]}) with the "
            f"rates of {calibrated_file()}; expected a file that dsmoe calibrate wrote: make it "
            "again",
            file=sys.stderr,
        )
        return {}


def _prediction(case: Any, devices: int, machine: Any) -> dict[str, Any]:
    from dsmoe.benchmark.predict.pipelines import predict_case

    cluster = known_here(machine.device, str(machine.hardware.get("device_name", "")))
    if cluster is None or (case.precision == "fp8" and "product_fp8" not in cluster.rates):
        return {}
    if importlib.util.find_spec("quack") is not None:
        cluster = cluster.with_quack(allowed_kernels(os.environ))
    return predict_case(case, cluster.with_hosts_of(devices)).to_dict(case)
