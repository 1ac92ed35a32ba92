"""What a prediction rests on that was not measured for it, in words."""

from __future__ import annotations

from dsmoe.benchmark.predict.rates.cluster import NOT_MEASURED, Cluster
from dsmoe.benchmark.predict.rates.row_checks import absent

#: Share of measurements that may fail without a remark: there are some that a device cannot do.
FEW = 0.2


def remarks(cluster: Cluster, device: str, processes: int, hosts: int) -> list[str]:
    """One sentence each, for a case of ``processes`` on ``hosts`` that runs on ``device``."""
    said = []
    if device != cluster.device:
        kinds = {"cpu": "a CPU", "cuda": "GPUs"}
        said.append(
            f"the case runs on {kinds[device]}, and the rates are those of {kinds[cluster.device]}"
        )
    between = hosts > 1
    unknown = [
        name
        for name, source in cluster.sources.items()
        if source == NOT_MEASURED and (between or not name.startswith("between"))
    ]
    if unknown:
        said.append(
            f"not measured, so stand-ins: {', '.join(unknown)}; state them in the file, or measure "
            "again with dsmoe calibrate"
        )
    failed = sum("error" in row for row in cluster.rows)
    if failed > FEW * len(cluster.rows):
        said.append(
            f"{failed} of {len(cluster.rows)} measurements of the file failed or had no time left, "
            "as on a busy machine; measure again with dsmoe calibrate while nothing else runs"
        )
    missing = absent(cluster.rows, processes) if device == cluster.device == "cpu" else []
    if missing:
        said.append(
            f"the file has no rows of {', '.join(missing)}, so the time is from its rates alone; "
            "measure again with dsmoe calibrate"
        )
    return said
