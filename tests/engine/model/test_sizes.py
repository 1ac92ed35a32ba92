"""The nine named sizes, and the closed formula against models that were built."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from deepspeed.moe.lm import SIZES, MoELM, MoELMConfig, config_for, parameter_count

UNIT = {"M": 1e6, "B": 1e9}


@pytest.mark.parametrize("name", list(SIZES))
def test_named_size_built_on_the_meta_device_has_the_parameters_of_the_formula(
    name: str, one_process: None
) -> None:
    with torch.device("meta"):
        model = MoELM(config_for(name))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == parameter_count(model.config)
    assert count == pytest.approx(float(name[:-1]) * UNIT[name[-1]], rel=0.04)
    assert model.config.moe_layers == list(range(1, model.config.num_layers, 2))


def test_formula_for_other_shapes(one_process: None) -> None:
    small = {"num_heads": 2, "vocab_size": 50, "sequence_length": 12}
    for experts, layers, every, multiplier in [
        (1, 3, 2, 8),
        (4, 5, 2, 3),
        (2, 3, 3, 1),
        (3, 2, 1, 2),
    ]:
        config = MoELMConfig(
            8, layers, experts, moe_every=every, ffn_multiplier=multiplier, **small
        )
        model = MoELM(config)
        assert sum(p.numel() for p in model.parameters()) == parameter_count(config)
        for implementation in ("einsum", "deepspeed"):
            other = MoELM(dataclasses.replace(config, moe_implementation=implementation))
            assert sum(p.numel() for p in other.parameters()) == parameter_count(config)


def test_formula_for_the_share_of_one_process() -> None:
    config = config_for("1.3B")
    whole, quarter = parameter_count(config), parameter_count(config, 4)
    hidden = 8 * 768
    expert = 768 * hidden + hidden + hidden * 768 + 768
    assert whole - quarter == 8 * 12 * expert
    with pytest.raises(ValueError, match="expected a divisor of num_experts = 16"):
        parameter_count(config, 3)


def test_config_for_takes_changes_and_refuses_unknown_names() -> None:
    config = config_for("10B", top_k=1, remat=True)
    assert (config.hidden_size, config.num_layers, config.num_experts) == (1536, 16, 32)
    assert config.top_k == 1 and config.remat and config.num_heads == 16
    with pytest.raises(ValueError, match="model size is '11B'; expected one of 380M, 690M"):
        config_for("11B")


SMALL = {"hidden_size": 32, "num_layers": 2, "num_experts": 4, "num_heads": 4}


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("hidden_size", 0, "a whole number, 1 or more"),
        ("hidden_size", 34, "a multiple of num_heads = 4"),
        ("num_layers", 2.0, "a whole number"),
        ("num_experts", True, "a whole number"),
        ("moe_every", 3, "at most num_layers = 2"),
        ("top_k", 3, "1 or 2"),
        ("capacity_factor", 0, "a number above 0"),
        ("eval_capacity_factor", float("nan"), "a number above 0"),
        ("min_capacity", -1, "a whole number, 0 or more"),
        ("group_size", 0, "a whole number, 1 or more"),
        ("second_expert_policy", "best", "'all', 'random', 'sampling'"),
        ("renormalize", "both", "'kept', 'chosen'"),
        ("noisy_gate_policy", "RSample", "None or 'Jitter' with top_k = 2"),
        ("aux_loss_coefficient", -0.1, "a number, 0 or more"),
        ("z_loss_coefficient", float("inf"), "a number, 0 or more"),
        ("dropout", 1.0, "from 0 to below 1"),
        ("remat", 1, "True or False"),
        ("moe_implementation", "tutel", "'index', 'einsum', 'deepspeed'"),
        ("attention", "flash", "'fused', 'math'"),
        ("init_std", -1.0, "a number above 0"),
    ],
)
def test_refuses_a_bad_field_by_name_value_and_expectation(
    field: str, value: object, expected: str
) -> None:
    with pytest.raises(ValueError) as error:
        MoELMConfig(**{**SMALL, field: value})
    assert str(error.value).startswith(f"MoELMConfig.{field} is {value!r}; expected ")
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("group_size", 16),
        ("z_loss_coefficient", 0.1),
        ("renormalize", "chosen"),
        ("second_expert_policy", "all"),
    ],
)
def test_refuses_what_deepspeeds_layer_would_ignore(field: str, value: object) -> None:
    MoELMConfig(**{**SMALL, field: value})
    with pytest.raises(ValueError, match=f"{field} is .* moe_implementation 'deepspeed'"):
        MoELMConfig(**{**SMALL, field: value}, moe_implementation="deepspeed")
