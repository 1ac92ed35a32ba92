"""``--precision fp8`` as a case: what it sets, what it refuses, what is predicted for it."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.cases.deepspeed_config import deepspeed_config
from dsmoe.benchmark.cases.suites import find_case
from dsmoe.benchmark.predict.rates.choose_cluster import prediction_here
from dsmoe.benchmark.predict.rates.cluster import load_cluster
from dsmoe.benchmark.predict.time import predict
from dsmoe.common.errors import UsageError


def fp8_case(gpus: int = 1) -> Case:
    return dataclasses.replace(find_case("tuned", gpus), precision="fp8")


def test_weights_are_bf16_and_the_model_multiplies_in_fp8() -> None:
    case = fp8_case()
    assert case.weight_precision == "bf16"
    assert case.model_settings()["fp8"] is True
    assert find_case("tuned", 1).model_settings()["fp8"] is False
    assert deepspeed_config(case, "cuda")["bfloat16"] == {"enabled": True}
    assert Case.from_dict(case.to_dict()) == case


def test_deepspeeds_own_layer_is_refused() -> None:
    with pytest.raises(UsageError, match="precision fp8 with DeepSpeed's own MoE layer; expected"):
        dataclasses.replace(
            fp8_case(),
            moe_implementation="deepspeed",
            compiled=False,
            cuda_graph=False,
        )


def test_the_prediction_is_within_a_tenth_of_the_measured_iteration() -> None:
    """1.684 s on one H200 (docs/lab/fp8.md); rates from single products, none from iterations."""
    case = dataclasses.replace(fp8_case(), micro_batches=8)
    cluster = load_cluster("h200-400g").with_hosts_of(1)
    assert predict(case, cluster).seconds == pytest.approx(1.684, rel=0.08)
    bf16 = dataclasses.replace(case, precision="bf16")
    ratio = predict(case, cluster).seconds / predict(bf16, cluster).seconds
    assert ratio == pytest.approx(0.85, abs=0.03)


def test_a_cluster_without_fp8_says_so() -> None:
    cluster = load_cluster("p3.16xlarge").with_hosts_of(1)
    with pytest.raises(UsageError, match=r"cluster p3\.16xlarge has no rate product_fp8"):
        predict(fp8_case(), cluster)


def test_a_run_without_known_rates_has_no_prediction() -> None:
    machine = SimpleNamespace(device="cpu", hardware={"device_name": "no such device"})
    assert prediction_here(fp8_case(), 1, machine) == {}
