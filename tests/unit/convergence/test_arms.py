"""The arms of the comparison cost the same per token and differ in what they are named for."""

from __future__ import annotations

from typing import Any

import pytest
from support.comparison import default_setting

from dsmoe.common.errors import UsageError
from dsmoe.convergence.arms import (
    ARMS,
    case_of,
    check_equal_flops,
    config_of,
    flops_per_token,
)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_all_arms_cost_the_same_per_token(device: str) -> None:
    sizes = default_setting(device)
    cases = {name: case_of(arm, sizes, 1) for name, arm in ARMS.items()}
    assert check_equal_flops([case.model for case in cases.values()]) == 0
    moe, dense = cases["moe"].model, cases["dense"].model
    assert (moe.num_experts, moe.top_k, moe.ffn_multiplier, dense.ffn_multiplier) == (8, 2, 8, 12)
    # Written out: forward once, backward twice, two operations a weight; gate left out.
    h, s = sizes.hidden_size, sizes.sequence_length
    attention = 2 * 4 * h * h + 4 * s * h
    feed_forward = {"dense": sizes.num_layers * 2 * 2 * 12 * h * h}
    feed_forward["moe"] = sizes.num_layers // 2 * (1 + 2) * 2 * 2 * 8 * h * h
    for name, products in feed_forward.items():
        forward = sizes.num_layers * attention + products + 2 * h * moe.vocab_size
        assert flops_per_token(cases[name].model) == 3 * forward
    # Everything but the model is the same, the balance loss and the optimizer's mode apart.
    shared = [
        {k: v for k, v in case.to_dict().items() if k not in ("model", "aux_loss_coefficient")}
        for name, case in cases.items()
        if "artifact" not in name
    ]
    assert shared[0] == shared[1] == shared[2]


def test_unequal_arms_are_refused() -> None:
    sizes = default_setting("cpu")
    models = [case_of(ARMS[name], sizes, 1).model for name in ("moe", "dense")]
    wide = type(models[1])(**{**vars(models[1]), "ffn_multiplier": 13})
    with pytest.raises(UsageError, match=r"FLOPs per token differ by 6.0 %"):
        check_equal_flops([models[0], wide])


def test_what_the_artifact_arms_change() -> None:
    sizes = default_setting("cpu")

    def optimizer(name: str) -> dict[str, Any]:
        config = config_of(ARMS[name], case_of(ARMS[name], sizes, 1), "cpu")
        return dict(config["optimizer"]["params"])

    moe = optimizer("moe")
    assert (moe["mode"], moe["relative_step"]) == ("sharded", False)
    assert optimizer("dense") == moe
    artifact = {**moe, "mode": "artifact"}
    assert optimizer("moe-artifact-adafactor-same-lr") == artifact
    assert optimizer("moe-artifact-adafactor") == {**artifact, "relative_step": True}
