"""One test a defect of the base (docs/reference/defects.md); each fails when its patch is left out.

test_patches_are_needed.py takes the patches out one by one and sees the failures.
"""

from __future__ import annotations

import pytest
import torch
from support.ranks import run_ranks

OWN_LAYER = {"moe_implementation": "deepspeed", "second_expert_policy": "sampling"}


def test_slices_of_two_groups_are_not_merged() -> None:
    """Defect 2: what is reduced over a group is exactly what that group shares.

    Two processes share the experts: dense slices go over both, expert slices stay. With six layers
    the experts of the second have dense neighbours whose partition has the same number as theirs.
    """
    scenario = {"expert_parallel": 2, "bucket": 10**6, "model": {"num_layers": 6}}
    for result in run_ranks(2, "reduced_slices", scenario):
        assert result["reduced"] == {2: result["held"]["dense"], 1: result["held"]["expert"]}


def test_gate_is_reduced_in_16_bit() -> None:
    """Defect 3: in bf16 the gate's gradient is averaged over the processes at every step."""
    scenario = {"precision": "bf16", "expert_parallel": 2, "model": OWN_LAYER}
    for result in run_ranks(2, "gate_reductions", scenario):
        assert list(result.values()) == [3]


def test_order_of_groups_does_not_matter() -> None:
    """Defect 4: dense first or experts first, the same training."""
    orders = [{"expert_parallel": 2, "flip_groups": flip, "steps": 4} for flip in (False, True)]
    dense_first, experts_first = run_ranks(4, "train_all", orders)[3]
    assert experts_first["losses"] == pytest.approx(dense_first["losses"], rel=1e-6)
    for name, weight in dense_first["weights"].items():
        torch.testing.assert_close(experts_first["weights"][name], weight, rtol=0, atol=1e-5)


def test_initialisation_is_no_step() -> None:
    """Defect 7: starting the engine neither counts a step nor decays a weight."""
    for kind in ({"stage": 2}, {"stage": 0, "precision": "fp16"}):
        result = run_ranks(1, "weights_after_start", {"optimizer": "AdamW", **kind})[0]
        assert sum(result["steps"]) == 0, kind
        # fp16 rounds the weights, before the fp32 copies are made of them, by 2e-4 of each at most
        exact = 1e-2 if "precision" in kind else 1e-6
        assert result["master_sum"] == pytest.approx(result["weight_sum"], abs=exact), kind


def test_unfused_norm_counts_the_experts() -> None:
    """Defect 9: the norm of fp16 at stage 0 is that of all gradients, dense and experts'."""
    scenario = {"stage": 0, "precision": "fp16", "expert_parallel": 2, "clip": 0.01}
    for result in run_ranks(2, "unfused_norm", scenario):
        assert result["found"] == pytest.approx(result["expected"], rel=1e-3)


@pytest.mark.not_on("0.5.4", reason="its MoE layers have no timers (defect 11)")
def test_moe_timers_are_off_by_default() -> None:
    """Defect 11: they wait for the device in every layer, so they run only when asked."""
    result = run_ranks(1, "timers_used", {"model": OWN_LAYER})[0]
    assert result["layers"] == 2 and result["timers"] == [[], []]
    asked = {"model": OWN_LAYER, "config": {"wall_clock_breakdown": True}}
    assert all(run_ranks(1, "timers_used", asked)[0]["timers"])


def test_only_the_filled_bucket_is_divided() -> None:
    """Defect 15: the rest of the reduce bucket is not touched."""
    for result in run_ranks(2, "bucket_after_backward", {"bucket": 50_000}):
        assert result["seen"]
        for rest, untouched in result["seen"]:
            assert rest > 40_000 and untouched


def test_experts_differ_and_do_not_depend_on_ep_size() -> None:
    """Defect 13: four different experts, the same four on one process and on two."""
    alone = run_ranks(1, "experts_of_own_layer", 1)[0]
    shared = run_ranks(2, "experts_of_own_layer", 2)
    together = {**shared[0], **shared[1]}
    assert together.keys() == alone.keys() == {"0", "1", "2", "3", "after"}
    for name, weight in alone.items():
        assert torch.equal(together[name], weight), name
    for i, j in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]:
        assert not torch.equal(alone[str(i)], alone[str(j)])


@pytest.fixture
def one_process(tmp_path) -> None:
    import torch.distributed as dist

    started = not dist.is_initialized()
    if started:
        store = f"file://{tmp_path / 'store'}"
        dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    if started:
        dist.destroy_process_group()


def test_top2_honours_its_arguments(one_process: None) -> None:
    """Defect 12: min_capacity, used_token and drop_tokens do what their names say."""
    from deepspeed.moe.sharded_moe import top2gating

    torch.manual_seed(0)
    logits = torch.randn(8, 4)
    logits[:, 0] += 10  # all first choices go to expert 0
    capacity = top2gating(logits, 0.25)[1].shape[2]
    assert capacity == 1
    assert top2gating(logits, 0.25, min_capacity=3)[1].shape[2] == 3

    used = torch.tensor([1.0, 0, 1, 0, 1, 0, 0, 0])
    _, weights, _, counts = top2gating(logits, 8.0, used_token=used)
    assert counts.tolist() == [3, 0, 0, 0]
    assert weights[used == 0].abs().sum() == 0 and (weights[used == 1].sum((1, 2)) > 0.99).all()

    kept = top2gating(logits, 0.25, drop_tokens=False)[2].sum((1, 2))
    assert kept.tolist() == [2] * 8  # both choices of every token
    assert top2gating(logits, 0.25)[2].sum() < 16


def test_top1_keeps_every_token_when_asked(one_process: None) -> None:
    """drop_tokens of the layer reaches top-1 gating (release 0.5.4 did not have it)."""
    from deepspeed.moe.sharded_moe import TopKGate

    torch.manual_seed(0)
    tokens = torch.randn(16, 4).abs()
    for drop, kept in ((True, 4), (False, 16)):
        gate = TopKGate(4, 2, k=1, capacity_factor=0.5, min_capacity=1, drop_tokens=drop)
        with torch.no_grad():
            gate.wg.weight[0], gate.wg.weight[1] = 1.0, -1.0  # all tokens go to expert 0
        assert int(gate(tokens)[2].sum()) == kept


@pytest.mark.parametrize(
    "kind",
    [
        {"stage": 2, "optimizer": "SGD"},
        {"stage": 1, "optimizer": "SGD", "flat": True},
        {"stage": 0, "optimizer": "SGD"},
        {"stage": 0, "optimizer": "AdamW"},
    ],
    ids=["ZeRO", "flat gradients", "unfused", "fused"],
)
def test_a_growing_loss_scale_does_not_shrink_the_step(kind: dict) -> None:
    """Defect 28: gradients are divided by the scale that multiplied them.

    A scale that doubles at every step trains like one that stays. AdamW forgives a wrong scale, so
    it gets an epsilon that it does not vanish in.
    """
    common = {"precision": "fp16", "clip": 0.0, "steps": 6, **kind}
    optimizer = {}
    if kind["optimizer"] == "AdamW":
        params = {"lr": 0.3, "eps": 1.0, "weight_decay": 0.0, "torch_adam": True}
        optimizer = {"optimizer": {"type": "AdamW", "params": params}}
    still = {"fp16": {"enabled": True, "loss_scale": 16.0}}
    growing = {"fp16": {"enabled": True, "initial_scale_power": 4, "loss_scale_window": 1}}
    scenarios = [{**common, "config": {**optimizer, **scale}} for scale in (still, growing)]
    expected, found = run_ranks(1, "train_all", scenarios)[0]
    assert found["losses"] == pytest.approx(expected["losses"], rel=2e-3)
