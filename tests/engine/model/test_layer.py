"""The whole layer against loops in NumPy, its parameters, and its numeric types."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from deepspeed.moe.expert_init import expert_seed, initialise_experts
from deepspeed.moe.gshard.experts import StackedExperts
from deepspeed.moe.gshard.layer import GShardMoE
from deepspeed.moe.layer import MoE
from deepspeed.moe.lm.block import FeedForward
from deepspeed.utils import groups
from hypothesis import given, settings
from hypothesis import strategies as st
from support import oracle_numpy as oracle

TOLERANCE = 1e-12
M, H = 6, 10

pytestmark = pytest.mark.usefixtures("one_process")


def layer(num_experts: int = 4, **changes: object) -> GShardMoE:
    """A small float64 layer with weights large enough to matter."""
    arguments = {"min_capacity": 1, "init_std": 0.5, "output_std": 0.5, **changes}
    moe = GShardMoE(M, num_experts, H, **arguments).double()
    for bias in (moe.deepspeed_moe.experts.stacked.b1, moe.deepspeed_moe.experts.stacked.b2):
        torch.nn.init.normal_(bias)
    return moe


def by_loops(moe: GShardMoE, x: torch.Tensor, parts: list[dict]) -> tuple[np.ndarray, list]:
    stacked = moe.deepspeed_moe.experts.stacked
    weights = [w.detach().numpy() for w in (stacked.w1, stacked.b1, stacked.w2, stacked.b2)]
    experts = [oracle.expert(*(w[e] for w in weights)) for e in range(moe.num_experts)]
    gate = moe.deepspeed_moe.gate.wg.weight.detach().numpy()
    return oracle.layer(x.detach().numpy(), gate, experts, parts)


@settings(deadline=None, max_examples=40)
@given(
    tokens=st.integers(1, 14),
    group_size=st.one_of(st.none(), st.integers(1, 9)),
    top_k=st.integers(1, 2),
    policy=st.sampled_from(["all", "random", "sampling"]),
    renormalize=st.sampled_from(["kept", "chosen"]),
    factor=st.sampled_from([0.5, 1.0, 2.0]),
    product_form=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_the_layer_equals_the_oracles_loops(
    tokens: int,
    group_size: int | None,
    top_k: int,
    policy: str,
    renormalize: str,
    factor: float,
    product_form: bool,
    seed: int,
) -> None:
    """Also where the tokens do not fill the last group, whose capacity is that of a whole one."""
    torch.manual_seed(seed)
    moe = layer(
        k=top_k,
        capacity_factor=factor,
        group_size=group_size,
        second_expert_policy=policy,
        renormalize=renormalize,
        product_form=product_form,
    )
    x = torch.randn(tokens, M, dtype=torch.float64)
    size = min(group_size or tokens, tokens)
    count = -(-tokens // size)
    torch.manual_seed(seed)
    noise = None
    if top_k == 2 and policy == "random":
        noise = torch.rand(count, size, dtype=torch.float64)
    if top_k == 2 and policy == "sampling":
        noise = -torch.log(-torch.log(torch.rand(count, size, 4, dtype=torch.float64)))
    capacity = max(1, -(-int(top_k * (group_size or tokens) * factor * 2) // 8))
    parts = [
        {
            "tokens": min(size, tokens - g * size),
            "capacity": capacity,
            "top_k": top_k,
            "policy": policy,
            "renormalize": renormalize,
            "noise": None if noise is None else noise[g].numpy(),
        }
        for g in range(count)
    ]
    expected, routed = by_loops(moe, x, parts)
    torch.manual_seed(seed)
    out, stats = moe.deepspeed_moe(x)
    np.testing.assert_allclose(out.detach().numpy(), expected, rtol=0, atol=TOLERANCE)
    aux, z = oracle.losses(routed)
    assert float(stats.aux_loss) == pytest.approx(aux, abs=TOLERANCE)
    assert float(stats.z_loss) == pytest.approx(z, abs=TOLERANCE)
    assert float(stats.dropped_share) == pytest.approx(oracle.dropped_share(routed))
    assert stats.expert_load_E.tolist() == [sum(g.load[e] for g in routed) for e in range(4)]


def test_tokens_that_are_not_used_take_no_capacity_and_come_out_as_zero() -> None:
    torch.manual_seed(1)
    moe = layer(capacity_factor=0.5, second_expert_policy="all")
    x = torch.randn(2, 6, M, dtype=torch.float64)
    used = torch.rand(2, 6) < 0.6
    out, stats = moe.deepspeed_moe(x, used)
    part = {"tokens": 12, "capacity": 3, "used": used.reshape(-1).tolist()}
    expected, routed = by_loops(moe, x.reshape(12, M), [part])
    np.testing.assert_allclose(
        out.detach().reshape(12, M).numpy(), expected, rtol=0, atol=TOLERANCE
    )
    assert float(stats.aux_loss) == pytest.approx(oracle.losses(routed)[0], abs=TOLERANCE)
    assert not out[~used].any()


def test_evaluation_draws_nothing_and_has_its_own_capacity() -> None:
    torch.manual_seed(2)
    moe = layer(eval_capacity_factor=4.0, second_expert_policy="sampling").eval()
    x = torch.randn(16, M, dtype=torch.float64)
    before = torch.random.get_rng_state()
    out, stats = moe.deepspeed_moe(x)
    assert torch.equal(before, torch.random.get_rng_state())
    assert float(stats.dropped_share) == 0
    expected, _ = by_loops(moe, x, [{"tokens": 16, "capacity": 16}])
    np.testing.assert_allclose(out.detach().numpy(), expected, rtol=0, atol=TOLERANCE)


def test_without_dropping_every_choice_is_kept() -> None:
    torch.manual_seed(3)
    moe = layer(drop_tokens=False, capacity_factor=0.1)
    with torch.no_grad():
        moe.deepspeed_moe.gate.wg.weight[0] *= 100
    _, stats = moe.deepspeed_moe(torch.randn(32, M, dtype=torch.float64))
    assert float(stats.dropped_share) == 0


def test_jitter_is_within_1_percent_and_only_in_training() -> None:
    torch.manual_seed(4)
    gate = layer(noisy_gate_policy="Jitter").deepspeed_moe.gate
    x = torch.ones(1000, M, dtype=torch.float64)
    with torch.no_grad():
        gate.wg.weight.zero_()[0, 0] = 1.0
    noisy = gate(x)[:, 0]
    assert 0.99 <= float(noisy.min()) < 0.991 and 1.009 < float(noisy.max()) <= 1.01
    assert torch.equal(gate.eval()(x)[:, 0], x[:, 0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gate_computes_in_fp32_from_a_16_bit_weight_that_stays_the_parameter(
    dtype: torch.dtype,
) -> None:
    """bd3ebd replaces the parameter by an fp32 copy, whose gradient ZeRO never reduces."""
    torch.manual_seed(5)
    moe = GShardMoE(M, 4, H).to(dtype)
    gate = moe.deepspeed_moe.gate
    before = gate.wg.weight
    x = torch.randn(64, M).to(dtype)
    logits = gate(x)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, x.float() @ before.float().t())
    out, aux, load = moe(x)
    (out.float().square().sum() + aux).backward()
    assert gate.wg.weight is before and before.dtype == dtype
    assert before.grad is not None and before.grad.dtype == dtype and bool(before.grad.any())
    assert out.dtype == dtype and aux.dtype == torch.float32 and int(load.sum()) == 64


def test_is_deepspeeds_layer_by_type_names_and_marks() -> None:
    moe = GShardMoE(M, 4, H)
    assert isinstance(moe, MoE)
    assert set(moe.state_dict()) == {
        "deepspeed_moe.gate.wg.weight",
        "deepspeed_moe.experts.stacked.w1",
        "deepspeed_moe.experts.stacked.b1",
        "deepspeed_moe.experts.stacked.w2",
        "deepspeed_moe.experts.stacked.b2",
    }
    for whole in (moe, copy.deepcopy(moe), moe.half()):
        for name, parameter in whole.named_parameters():
            assert getattr(parameter, "allreduce", True) == ("experts" not in name)
            assert getattr(parameter, "adafactor_batch_dims", 0) == int("experts" in name)


def test_construction_refuses_what_cannot_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="k is 2; expected 1 or 2, and at most num_experts = 1"):
        GShardMoE(M, 1, H, k=2)
    monkeypatch.setattr(groups, "get_expert_parallel_world_size", lambda: 4)
    with pytest.raises(ValueError, match="num_experts is 6; expected a multiple of the"):
        GShardMoE(M, 6, H)
    monkeypatch.setattr(groups, "_EXPERT_PARALLEL_GROUP", None)
    with pytest.raises(RuntimeError, match=r"call deepspeed\.utils\.groups\.initialize"):
        GShardMoE(M, 4, H)


class _WithoutReset(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.GELU())


def test_initialise_experts_goes_by_global_number_and_leaves_the_stream_alone() -> None:
    whole = [_WithoutReset() for _ in range(4)]
    half = [_WithoutReset() for _ in range(2)]
    torch.manual_seed(6)
    initialise_experts(whole, 0)
    after_four = torch.rand(1)
    torch.manual_seed(6)
    initialise_experts(half, 2)
    assert torch.equal(after_four, torch.rand(1))
    for ours, theirs in zip(half, whole[2:]):
        assert torch.equal(ours.inner[0].weight, theirs.inner[0].weight)
    drawn = [expert.inner[0].weight.flatten().tolist() for expert in whole]
    assert len({tuple(d) for d in drawn}) == 4


def test_stacked_and_separate_experts_of_one_seed_are_equal() -> None:
    stacked = StackedExperts(2, M, H, 0.3, 0.1)
    stacked.initialise(5, 99)
    separate = [FeedForward(M, H, 0.3, 0.1) for _ in range(2)]
    initialise_experts(separate, 5, seed=99)
    x = torch.randn(2, 7, M)
    for i, expert in enumerate(separate):
        assert torch.equal(stacked.w1[i], expert.fc1.weight.t())
        assert torch.equal(stacked.w2[i], expert.fc2.weight.t())
        torch.testing.assert_close(stacked(x)[i], expert(x[i]))  # fp32: rtol 1.3e-6, atol 1e-5
    assert expert_seed(2**32 - 1, 1) == 0
