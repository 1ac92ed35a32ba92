"""A cluster as data: its hosts, its GPUs' rates and its links, each with where it comes from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Mapping

from dsmoe.benchmark.predict.rates.row_checks import LEAST, MOST, check_rows
from dsmoe.common.errors import UsageError
from dsmoe.common.files import expanded, read_large

FOLDER = Path(__file__).parent / "clusters"
SCHEMA = 1
#: Rate -> unit. Every cluster has all of them; docs/guide/scaling.md says what each one is.
RATES = {
    "product_16bit": "TFLOP/s",
    "product_fp32": "TFLOP/s",
    "attention": "TFLOP/s",
    "memory": "GB/s",
    "pass_share": "of the memory rate",
    "eager_share": "of the memory rate",
    "launch": "us",
    "launch_backward": "us",
    "launch_graph": "us",
    "inside": "GB/s",
    "inside_latency": "us",
    "between": "Gb/s",
    "between_share": "of the line rate",
    "between_latency": "us",
}
#: The source of a rate that dsmoe calibrate could not measure, for which another value stands.
NOT_MEASURED = "not measured here; state it by hand"
#: Rates that a cluster may lack.
FURTHER = {"product_fp8": "TFLOP/s", "product_quack": "TFLOP/s"}


@dataclass(frozen=True)
class Cluster:
    """``gpus_per_host`` devices on each host, their ``memory_bytes``, and the rates (RATES).

    ``duplex``: a link between hosts carries its rate in both directions at a time; not so a
    loopback, whose directions share it. ``rows``: those of dsmoe calibrate, where it made the file.
    ``quack``: products of compiled layers by quack-kernels (:meth:`with_quack`); ``packs``: experts
    then compute filled slots alone, where all are on a process (not in FP8).
    """

    name: str
    device: str
    gpu: str
    gpus_per_host: int
    memory_bytes: int
    rates: Mapping[str, float]
    sources: Mapping[str, str]
    duplex: bool = True
    rows: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    quack: bool = False
    packs: bool = True

    def rate(self, name: str) -> float:
        """The value of a rate, in the unit of RATES or FURTHER.

        Raises UsageError for one of FURTHER that this cluster lacks.
        """
        if name not in self.rates:
            raise UsageError(
                f"cluster {self.name} has no rate {name}: its device has none, or it was not "
                "measured; expected --precision bf16, or another --cluster"
            )
        return self.rates[name]

    def label(self, compiled: bool) -> str:
        """The name, and whose products a case has that is ``compiled`` or not."""
        return f"{self.name}, quack-kernels" if self.quack and compiled else self.name

    def with_quack(self, choice: str) -> Cluster:
        """The same with quack's products, where ``choice`` (of DSMOE_KERNELS) allows them and the
        rate is known."""
        return replace(self, quack=choice in ("all", "nccl") and "product_quack" in self.rates)

    def with_hosts_of(self, devices: int) -> Cluster:
        """The same with ``devices`` GPUs on each host."""
        return replace(self, gpus_per_host=devices)


def names() -> list[str]:
    """The clusters that come with this project."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_cluster(name: str) -> Cluster:
    """A cluster that comes with this project, or a file. Raises UsageError."""
    path = FOLDER / f"{name}.json"
    if name not in names():
        path = expanded(name)
        if not path.is_file():
            raise UsageError(
                f"--cluster {name}: no such cluster and no such file; expected one of "
                f"{', '.join(names())}, or a file that dsmoe calibrate wrote"
            )
    try:
        return parse(json.loads(read_large(path)))
    except (OSError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(
            f"--cluster {name}: {error}; expected a file that dsmoe calibrate wrote"
        ) from error


def parse(values: Any) -> Cluster:
    """The cluster of a file's content. Raises ValueError that says what is wrong."""
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        raise ValueError(f"it is no cluster of schema {SCHEMA}")
    rates = values.get("rates")
    if not isinstance(rates, dict):
        raise ValueError("it has no rates")
    missing = [name for name in RATES if name not in rates]
    if missing:
        raise ValueError(f"rates are missing: {', '.join(missing)}")
    for name, rate in rates.items():
        value: Any = rate.get("value") if isinstance(rate, dict) else None
        if name in (*RATES, *FURTHER) and not (
            type(value) in (int, float) and LEAST <= value <= MOST
        ):
            raise ValueError(
                f"the rate {name} is {value!r:.40}, expected a number from {LEAST:g} to {MOST:g}"
            )
    for name in ("gpus_per_host", "memory_bytes"):
        if not (type(values.get(name)) is int and values[name] >= 1):
            raise ValueError(f"{name} is {values.get(name)!r}, expected a count of at least 1")
    if values.get("device") not in ("cpu", "cuda"):
        raise ValueError(f"device is {values.get('device')!r}, expected cpu or cuda")
    if type(values.get("duplex", True)) is not bool:
        raise ValueError(f"duplex is {values['duplex']!r}, expected true or false")
    check_rows(values.get("rows", []), values["device"])
    known = [*RATES, *(name for name in FURTHER if name in rates)]
    return Cluster(
        name=str(values.get("name", "")),
        device=values["device"],
        gpu=str(values.get("gpu", "")),
        gpus_per_host=values["gpus_per_host"],
        memory_bytes=values["memory_bytes"],
        rates={name: float(rates[name]["value"]) for name in known},
        sources={name: str(rates[name].get("source", "")) for name in known},
        duplex=values.get("duplex") is not False,
        rows=tuple(values.get("rows", ())),
    )
