"""What the processes of the tests of client_state do."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import enum
import fractions
import pathlib
import random
import types
import uuid
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from support.scenarios import end, full, start_engine


class Mode(enum.Enum):
    FAST = 1


class Mine:
    pass


def kinds() -> dict[str, Any]:
    """A value of every kind that is to load; they compare equal to their copies."""
    counts: Any = collections.defaultdict(int, a=1)
    zone = datetime.timezone(datetime.timedelta(hours=2))
    return {
        "np_float": np.float64(0.25),
        "np_int": np.int32(-3),
        "np_bool": np.bool_(True),
        "np_text": np.str_("a"),
        "namespace": argparse.Namespace(lr=0.1, path=pathlib.Path("a/b"), names=["x"]),
        "simple": types.SimpleNamespace(a=1),
        "path": pathlib.Path("/some/where"),
        "pure": pathlib.PurePosixPath("x/y"),
        "deque": collections.deque([1, 2], maxlen=4),
        "defaultdict": counts,
        "nested_defaultdict": collections.defaultdict(list, a=[np.float32(1.5)]),
        "ordered": collections.OrderedDict(a=1, b=(2, 3)),
        "counter": collections.Counter("aab"),
        "datetime": datetime.datetime(2024, 2, 3, 4, 5, tzinfo=zone),
        "naive": datetime.datetime(2024, 2, 3, 4, 5, 6, 7),
        "utc": datetime.datetime(2024, 2, 3, tzinfo=datetime.timezone.utc),
        "date": datetime.date(2024, 2, 3),
        "time": datetime.time(4, 5),
        "timedelta": datetime.timedelta(days=1, microseconds=5),
        "set": {1, "b"},
        "frozenset": frozenset({(1, 2)}),
        "bytes": b"\x00\xff",
        "bytearray": bytearray(b"ab"),
        "complex": 1 - 2j,
        "range": range(0, 9, 2),
        "slice": slice(1, None, 2),
        "decimal": decimal.Decimal("1.10"),
        "fraction": fractions.Fraction(1, 3),
        "uuid": uuid.UUID(int=7),
        "random": random.Random(3).getstate(),
        "size": torch.Size([2, 3]),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "none": None,
        "nested": {"a": [{"b": (1.5, None, True)}], 3: "c"},
    }


def arrays() -> dict[str, Any]:
    return {
        "floats": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "text": np.array(["ab", "c"]),
        "records": np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        "dates": np.array(["2024-02-03"], dtype="datetime64[D]"),
        "objects": np.array([1, "a", None], dtype=object),
        "tensor": torch.arange(3.0).bfloat16(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "state": np.random.RandomState(3).get_state()[1],
    }


def client_round_trip(scenario: dict[str, Any], folder: str) -> list[str]:
    """Keys whose values a checkpoint does not give back."""
    scenario = full(scenario)
    engine = start_engine(scenario)
    engine.save_checkpoint(folder, tag="t", client_state={**kinds(), **arrays()})
    _, loaded = engine.load_checkpoint(folder, tag="t")
    lost = [
        key
        for key, value in kinds().items()
        if key not in loaded or type(loaded[key]) is not type(value) or loaded[key] != value
    ]
    for key, value in arrays().items():
        same = torch.equal if torch.is_tensor(value) else np.array_equal
        if type(loaded[key]) is not type(value) or not same(loaded[key], value):
            lost.append(key)
    # what was loaded is given back with the next save
    loaded["global_samples"] = -1
    engine.save_checkpoint(folder, tag="u", client_state=loaded)
    _, again = engine.load_checkpoint(folder, tag="u")
    if again["path"] != loaded["path"] or engine.global_samples == -1:
        lost.append("given back")
    end(engine)
    return lost


def refused() -> dict[str, Any]:
    return {
        "mode": Mode.FAST,
        "deep": {"a": [1, (Mine(),)]},
        "array": np.array([Mine()], dtype=object),
        "function": lambda: 1,
        "method": Mine().__init__,
        "generator": np.random.default_rng(3),
        "module": 1,
        "global_steps": 1,
    }


def client_errors(scenario: dict[str, Any], folder: str) -> dict[str, str]:
    """What saving each of them raises, on every process; the state is bad on rank 0 alone."""
    engine = start_engine(full(scenario))
    said = {}
    for key, value in refused().items():
        mine = {"fine": 1, key: value} if dist.get_rank() == 0 else {"fine": 1}
        try:
            engine.save_checkpoint(folder, tag=key, client_state=mine)
            said[key] = ""
        except (TypeError, ValueError) as error:
            said[key] = f"{type(error).__name__}: {error}"
    end(engine)
    return said
