"""The profiler counts experts, and a timer that measures nothing is not printed."""

from __future__ import annotations

import pytest
from support.ranks import run_ranks

pytest.importorskip("torch.utils.flop_counter", reason="torch's own counter came with 2.1")
OWN = {"moe_implementation": "deepspeed", "second_expert_policy": "sampling"}


@pytest.mark.parametrize("model", [{}, OWN], ids=["index", "deepspeed"])
def test_products_of_experts_are_counted(model: dict) -> None:
    """Equal to torch's counter but for what that leaves out: softmax and embedding, under 10 %."""
    result = run_ranks(1, "profiled", {"model": {"hidden_size": 32, **model}})[0]
    assert result["expected"] <= result["found"] < 1.1 * result["expected"], result


def test_parameters_of_all_experts_are_counted() -> None:
    """At expert parallel size 2 a process has half of them."""
    scenario = {"stage": 2, "expert_parallel": 2, "model": {"num_experts": 4}}
    result = run_ranks(2, "counted_by_engine", scenario)[0]
    shown = next(line for line in result["said"].splitlines() if "params of model" in line)
    assert f"{result['parameters'] / 1000:.2f} k" in shown, (shown, result["parameters"])
    assert "step latency: " not in result["said"]  # the first step has had none


@pytest.mark.not_on("0.5.4", reason="its layer has no times")
def test_only_what_is_measured_is_printed() -> None:
    scenario = {"stage": 2, "expert_parallel": 2}
    assert run_ranks(2, "counted_by_engine", scenario)[0]["lines"] == []
    own = run_ranks(2, "counted_by_engine", {**scenario, "model": OWN})[0]["lines"]
    assert len(own) == 1 and "forward_moe: " in own[0] and "top-k: " in own[0]
