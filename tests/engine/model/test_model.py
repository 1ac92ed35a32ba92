"""The language model: its loss, attention, recomputation, training, compilation, seeds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from deepspeed.moe import sharded_moe
from deepspeed.moe.gshard.activation import gelu, gelu_tanh_formula
from deepspeed.moe.lm import MoELM, MoELMConfig, param_groups

CONFIG = MoELMConfig(
    hidden_size=32,
    num_layers=4,
    num_experts=4,
    num_heads=4,
    vocab_size=64,
    sequence_length=16,
    min_capacity=1,
    second_expert_policy="all",
)
TOKENS = torch.randint(64, (4, 17), generator=torch.Generator().manual_seed(0))
INPUTS, LABELS = TOKENS[:, :-1], TOKENS[:, 1:]

pytestmark = pytest.mark.usefixtures("one_process")


def model(seed: int = 1, **changes: object) -> MoELM:
    return MoELM(dataclasses.replace(CONFIG, **changes), seed=seed)


def gradients(lm: MoELM, seed: int = 0) -> tuple[float, list[torch.Tensor]]:
    torch.manual_seed(seed)
    loss = lm(INPUTS, LABELS)
    return float(loss), list(torch.autograd.grad(loss, list(lm.parameters())))


def assert_same(one: tuple, other: tuple, atol: float) -> None:
    assert one[0] == pytest.approx(other[0], abs=atol)
    for found, expected in zip(one[1], other[1]):
        torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def test_loss_is_cross_entropy_and_the_routers_losses() -> None:
    """Cross-entropy from the logits in NumPy float64, to 1e-5 of the fp32 loss."""
    lm = model(aux_loss_coefficient=0.5, z_loss_coefficient=0.25)
    loss = lm(INPUTS, LABELS)
    stats = lm.last_stats
    logits = lm(INPUTS).detach().double().numpy().reshape(-1, 64)
    logits -= logits.max(1, keepdims=True)
    each = np.log(np.exp(logits).sum(1)) - logits[np.arange(64), LABELS.reshape(-1).numpy()]
    assert float(stats.cross_entropy) == pytest.approx(each.mean(), abs=1e-5)
    total = stats.cross_entropy + 0.5 * stats.aux_loss + 0.25 * stats.z_loss
    assert float(loss) == pytest.approx(float(total), abs=1e-6)
    assert 1.5 < float(stats.aux_loss) < 8, "summed over two layers: 2 when uniform"
    assert stats.expert_load.shape == (2, 4) and stats.expert_load.sum(1).tolist() == [64, 64]
    assert stats.dropped_share.shape == (2,)
    assert not any(part.requires_grad for part in stats)

    mask = torch.rand(4, 16, generator=torch.Generator().manual_seed(1))
    lm(INPUTS, LABELS, mask)
    expected = np.average(each, weights=mask.reshape(-1).double().numpy())
    assert float(lm.last_stats.cross_entropy) == pytest.approx(expected, abs=1e-5)
    lm(INPUTS, LABELS, torch.zeros(4, 16))
    assert float(lm.last_stats.cross_entropy) == 0


@pytest.mark.parametrize("loss", ["aux_loss_coefficient", "z_loss_coefficient"])
def test_routers_losses_train_the_gates_in_proportion_to_their_coefficient(loss: str) -> None:
    """In float64, to 1e-12."""
    gate_gradients = []
    for coefficient in (0.0, 0.5, 1.0):
        changes = {"aux_loss_coefficient": 0.0, loss: coefficient}
        lm = model(**changes).double()
        lm(INPUTS, LABELS).backward()
        gate_gradients.append(lm.layers[3].ffn.deepspeed_moe.gate.wg.weight.grad)
    none, half, full = gate_gradients
    torch.testing.assert_close(full - none, 2 * (half - none), rtol=0, atol=1e-12)
    assert float((full - none).abs().max()) > 1e-4


def test_fused_and_math_attention_are_equal() -> None:
    """In float64 to 1e-12, output and gradients."""
    fused, written_out = model().double(), model(attention="math").double()
    assert fused.layers[0].attention.fused and not written_out.layers[0].attention.fused
    assert_same(gradients(fused), gradients(written_out), 1e-12)


def test_gelu_formula_is_torchs_tanh_form() -> None:
    x = torch.linspace(-6, 6, 200, dtype=torch.float64)
    torch.testing.assert_close(gelu(x), gelu_tanh_formula(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("experts", [1, 4])
def test_a_position_does_not_see_those_after_it(experts: int) -> None:
    """With room for all, experts too see one token at a time. To 1e-12 in float64."""
    lm = model(num_experts=experts, eval_capacity_factor=4.0).double().eval()
    changed = INPUTS.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % 64
    before, after = lm(INPUTS), lm(changed)
    torch.testing.assert_close(before[:, :9], after[:, :9], rtol=0, atol=1e-12)
    assert (before[:, 9] - after[:, 9]).abs().min() > 0


def test_one_expert_is_the_dense_model() -> None:
    lm = model(num_experts=1)
    loss = lm(INPUTS, LABELS)
    assert not any("deepspeed_moe" in name for name in lm.state_dict())
    assert torch.equal(loss.detach(), lm.last_stats.cross_entropy)
    assert lm.last_stats.expert_load.shape == (0, 1)
    assert [group["name"] for group in param_groups(lm)] == ["dense"]


@pytest.mark.parametrize("implementation", ["index", "deepspeed"])
def test_recomputation_changes_neither_loss_nor_gradients(implementation: str) -> None:
    """Bit for bit, with dropout and a sampled second expert: the draws are repeated."""
    changes = {
        "dropout": 0.1,
        "second_expert_policy": "sampling",
        "moe_implementation": implementation,
    }
    assert_same(gradients(model(**changes)), gradients(model(remat=True, **changes)), 0.0)


def test_index_and_product_form_train_alike() -> None:
    """Through the whole model in float64, to 1e-12."""
    changes = {"capacity_factor": 0.7, "group_size": 24, "z_loss_coefficient": 0.1}
    index = gradients(model(**changes).double())
    product = gradients(model(moe_implementation="einsum", **changes).double())
    assert_same(index, product, 1e-12)


@pytest.mark.parametrize(("top_k", "factor"), [(1, 4.0), (2, 0.5), (2, 1.0)])
def test_equals_deepspeeds_own_layer(
    top_k: int, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the two route alike: with top-2 once DeepSpeed's Gumbel noise is 0 (tokens are dropped
    alike too), with top-1 where there is room for all. In fp32, to 1e-6."""
    monkeypatch.setattr(
        sharded_moe, "gumbel_rsample", lambda shape, device: torch.zeros(shape, device=device)
    )
    ours = model(top_k=top_k, capacity_factor=factor)
    theirs = model(
        top_k=top_k,
        capacity_factor=factor,
        moe_implementation="deepspeed",
        second_expert_policy="sampling",
    )
    stacked = ours.layers[1].ffn.deepspeed_moe.experts.stacked
    separate = theirs.layers[1].ffn.deepspeed_moe.experts.deepspeed_experts
    assert all(torch.equal(stacked.w1[e], separate[e].fc1.weight.t()) for e in range(4))
    one, other = ours(INPUTS, LABELS), theirs(INPUTS, LABELS)
    assert bool(ours.last_stats.dropped_share.any()) == (top_k == 2)
    assert float(one) == pytest.approx(float(other), abs=1e-6)
    one.backward()
    other.backward()
    for e in range(4):
        expected = separate[e].fc1.weight.grad
        torch.testing.assert_close(stacked.w1.grad[e].t(), expected, rtol=0, atol=1e-6)
    gates = [lm.layers[1].ffn.deepspeed_moe.gate.wg.weight.grad for lm in (ours, theirs)]
    torch.testing.assert_close(*gates, rtol=0, atol=1e-6)


@pytest.mark.parametrize("implementation", ["index", "einsum", "deepspeed"])
def test_learns_a_batch_by_heart(implementation: str) -> None:
    """From ln 64 = 4.16 to below 1 in 40 steps."""
    torch.manual_seed(3)
    lm = model(moe_implementation=implementation, second_expert_policy="sampling")
    optimizer = torch.optim.Adam(lm.parameters(), lr=5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        lm(INPUTS, LABELS).backward()
        optimizer.step()
    assert float(lm.last_stats.cross_entropy) < 1


def test_one_seed_gives_one_model() -> None:
    """Without a seed the default generator gives one, by a single draw."""

    def same(one: MoELM, other: MoELM) -> bool:
        pairs = zip(one.parameters(), other.parameters())
        return all(torch.equal(a, b) for a, b in pairs)

    assert same(model(seed=1), model(seed=1)) and not same(model(seed=1), model(seed=2))
    torch.manual_seed(4)
    first, drawn = MoELM(CONFIG), torch.rand(1)
    torch.manual_seed(4)
    again = MoELM(dataclasses.replace(CONFIG, moe_implementation="einsum"))
    assert same(first, again) and torch.equal(drawn, torch.rand(1))
    assert not same(first, MoELM(CONFIG))


def test_initial_weights_have_the_stated_deviations() -> None:
    """Normal with 0.02, residual projections with 0.02 / sqrt(8); sample deviation to 5 %."""
    lm = model(hidden_size=64)
    stacked = lm.layers[1].ffn.deepspeed_moe.experts.stacked
    small = 0.02 / 8**0.5
    for weight, std in [
        (lm.embedding.weight, 0.02),
        (lm.layers[0].attention.qkv.weight, 0.02),
        (lm.layers[0].attention.out.weight, small),
        (lm.layers[2].ffn.fc1.weight, 0.02),
        (lm.layers[2].ffn.fc2.weight, small),
        (stacked.w1[3], 0.02),
        (stacked.w2[3], small),
    ]:
        assert float(weight.std()) == pytest.approx(std, rel=0.05)
    assert not stacked.b1.any() and bool((lm.final_norm.weight == 1).all())
    flat = [stacked.w1[e].flatten() for e in range(4)] + [
        lm.layers[3].ffn.deepspeed_moe.experts.stacked.w1[0].flatten()
    ]
    assert float(torch.corrcoef(torch.stack(flat)).triu(1).abs().max()) < 0.03


def test_param_groups_separate_experts_and_weight_decay() -> None:
    for implementation in ("index", "deepspeed"):
        lm = model(moe_implementation=implementation, second_expert_policy="sampling")
        dense, experts = param_groups(lm)
        assert "moe" not in dense and experts["moe"] is True
        assert all(p.allreduce is False for p in experts["params"])
        ids = [id(p) for group in (dense, experts) for p in group["params"]]
        assert sorted(ids) == sorted(id(p) for p in lm.parameters())
        split = {group["name"]: group for group in param_groups(lm, split_weight_decay=True)}
        assert sorted(split) == ["dense", "dense_no_decay", "experts", "experts_no_decay"]
        assert all(group["weight_decay"] == 0 for name, group in split.items() if "no" in name)
        per_expert = sum(p.numel() for p in split["experts_no_decay"]["params"])
        assert per_expert == 2 * 4 * (32 + 256), "the biases of 2 layers of 4 experts"
        gate = lm.layers[1].ffn.deepspeed_moe.gate.wg.weight
        assert any(p is gate for p in split["dense"]["params"])


def test_refuses_a_sequence_longer_than_its_positions() -> None:
    with pytest.raises(ValueError, match="17 positions; expected at most sequence_length = 16"):
        model()(TOKENS)


@pytest.mark.parametrize("policy", ["all", "random", "sampling"])
def test_a_step_does_not_wait_for_the_device(policy: str) -> None:
    """On the meta device, which has no values, anything that reads one fails."""
    with torch.device("meta"):
        lm = model(second_expert_policy=policy, group_size=10, z_loss_coefficient=0.1)
        lm(INPUTS.to("meta"), LABELS.to("meta"), torch.ones(4, 16)).backward()
    assert all(p.grad is not None for p in lm.parameters())


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("aot_eager", marks=pytest.mark.long),
        pytest.param("inductor", marks=pytest.mark.slow),
    ],
)
def test_the_model_compiles_as_one_graph(backend: str) -> None:
    """One graph, no breaks, forwards and backwards; equal to the plain model to 1e-5 in fp32."""
    if not hasattr(torch, "compile"):
        pytest.skip("this torch has no torch.compile")
    plain = model(num_layers=2, capacity_factor=0.7)
    compiled = torch.compile(plain, fullgraph=True, backend=backend)
    expected = gradients(plain)
    loss = compiled(INPUTS, LABELS)
    found = torch.autograd.grad(loss, list(plain.parameters()))
    assert_same((float(loss), found), expected, 1e-5)
    assert plain.last_stats.expert_load.sum().item() == 64
