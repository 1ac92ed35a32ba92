"""Whole parameters: equal to torch_optimizer 0.3.0, unit by unit."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.adafactor import Oracle, gradients, largest_error, load_package, random_tensors

adafactor = load_package()
STEPS = 20
TOLERANCE = 1e-12

OPTIONS = {
    "default": {},
    "lr ignored under relative_step": {"lr": 3.0},
    "lr": {"lr": 0.02, "relative_step": False},
    "lr, not scaled": {"lr": 0.02, "relative_step": False, "scale_parameter": False},
    "warmup": {"warmup_init": True},
    "momentum": {"beta1": 0.9},
    "decay": {"weight_decay": 0.1},
    "tight clip, other eps2": {"clip_threshold": 0.3, "eps2": (1e-6, 0.5)},
    "other decay rate": {"decay_rate": -0.5},
    "all": {
        "lr": 0.05,
        "relative_step": False,
        "beta1": 0.8,
        "weight_decay": 0.05,
        "clip_threshold": 0.7,
        "decay_rate": -0.6,
        "eps2": (1e-12, 1e-2),
    },
}

# Shape and the number of its leading dimensions that are a batch (None: by default).
FLAT = [((7, 5), None), ((5,), None), ((7, 5), None), ((1, 6), None), ((6, 1), None), ((), None)]
STACKED = [((3, 4, 5), None), ((3, 1, 5), None), ((2, 2, 3, 4), None), ((3, 5), 1), ((4, 3), 2)]


def train(shapes, batch_dims, options, steps=STEPS, dtype=torch.float64):
    """The same steps by Adafactor and by the oracle: final values of both, and the optimizer."""
    start = random_tensors(shapes, 1, 0.3)
    loops = [max(0, len(s) - 2) if b is None else b for s, b in zip(shapes, batch_dims)]
    oracle = Oracle(start, loops, **options)
    params = [torch.nn.Parameter(value.to(dtype)) for value in start]
    for param, dims in zip(params, batch_dims):
        if dims is not None:
            param.adafactor_batch_dims = dims
    optimizer = adafactor.Adafactor(params, **options)
    for step in range(steps):
        grads = gradients(shapes, step)
        for param, grad in zip(params, grads):
            param.grad = grad.to(dtype)
        optimizer.step()
        oracle.step(grads)
        assert all(torch.equal(p.grad, grad.to(dtype)) for p, grad in zip(params, grads))
    return [param.detach() for param in params], oracle.values(), optimizer


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("case", [FLAT, STACKED], ids=["flat", "stacked"])
def test_equals_torch_optimizer_on_every_unit(case, options):
    found, expected, _ = train([s for s, _ in case], [b for _, b in case], options)
    assert largest_error(found, expected) <= TOLERANCE


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(1, 5), max_size=4), min_size=1, max_size=5))
def test_any_shapes(shapes):
    found, expected, _ = train(shapes, [None] * len(shapes), {"beta1": 0.5}, steps=4)
    assert largest_error(found, expected) <= TOLERANCE


def test_batches_are_split_at_their_limit_without_changing_the_result(monkeypatch):
    shapes = [(2, 3, 4)] * 5 + [(3, 4)] * 3
    whole, _, _ = train(shapes, [None] * 8, {})
    monkeypatch.setattr(adafactor.optimizer, "BATCH_ELEMENTS", 30)
    split, expected, _ = train(shapes, [None] * 8, {})
    assert largest_error(split, expected) <= TOLERANCE
    assert largest_error(split, whole) <= TOLERANCE


def test_a_parameter_that_is_not_contiguous():
    start = random_tensors([(4, 6)], 1, 0.3)
    oracle = Oracle(start, [0])
    param = torch.nn.Parameter(start[0].t().contiguous().t())
    assert not param.is_contiguous()
    optimizer = adafactor.Adafactor([param])
    for step in range(3):
        grads = gradients([(4, 6)], step)
        param.grad = grads[0].clone()
        optimizer.step()
        oracle.step(grads)
    assert largest_error([param.detach()], oracle.values()) <= TOLERANCE


def test_a_parameter_without_gradient_is_left_alone_and_counts_its_own_steps():
    start = random_tensors([(3, 4), (3, 4)], 1, 0.3)
    params = [torch.nn.Parameter(value.clone()) for value in start]
    optimizer = adafactor.Adafactor(params, weight_decay=0.1)
    oracle = Oracle(start[:1], [0], weight_decay=0.1)
    late = Oracle(start[1:], [0], weight_decay=0.1)
    for step in range(6):
        grads = gradients([(3, 4), (3, 4)], step)
        params[0].grad = grads[0].clone()
        params[1].grad = grads[1].clone() if step >= 4 else None
        optimizer.step()
        oracle.step(grads[:1])
        if step >= 4:
            late.step(grads[1:])
        else:
            assert torch.equal(params[1], start[1])
    found = [param.detach() for param in params]
    assert largest_error(found, oracle.values() + late.values()) <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_parameters_are_computed_in_fp32(dtype):
    """From the same 16-bit values and gradients, one step is the fp32 step, rounded once."""
    shapes = [(8, 6), (6,), (8, 6)]
    halves = [torch.nn.Parameter(v.to(dtype)) for v in random_tensors(shapes, 1, 0.3)]
    floats = [torch.nn.Parameter(p.detach().float()) for p in halves]
    for half, whole, grad in zip(halves, floats, gradients(shapes, 0)):
        half.grad = grad.to(dtype)
        whole.grad = half.grad.float()
    optimizers = [adafactor.Adafactor(params) for params in (halves, floats)]
    for optimizer in optimizers:
        optimizer.step()
    for half, whole in zip(halves, floats):
        torch.testing.assert_close(half.detach(), whole.detach().to(dtype), rtol=0, atol=1e-7)
    fresh = adafactor.Adafactor(halves)
    fresh.load_state_dict(optimizers[0].state_dict())
    for half, whole in zip(halves, floats):
        for key, value in optimizers[1].state[whole].items():
            assert key == "step" or torch.equal(fresh.state[half][key], value), key


def test_state_goes_through_a_weights_only_file():
    shapes, dims, options = [(3, 4, 5), (5,), (3, 5)], [None, None, 1], {"beta1": 0.9}
    params, _, optimizer = train(shapes, dims, options, steps=5)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    clones = [torch.nn.Parameter(param.clone()) for param in params]
    clones[2].adafactor_batch_dims = 1
    resumed = adafactor.Adafactor(clones, **options)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    originals = optimizer.param_groups[0]["params"]
    for step in range(5, 8):
        for a, b, grad in zip(originals, clones, gradients(shapes, step)):
            a.grad, b.grad = grad.clone(), grad.clone()
        optimizer.step()
        resumed.step()
    assert all(torch.equal(a, b) for a, b in zip(originals, clones))


def test_init_state_counts_no_step_and_leaves_the_weights():
    start = random_tensors([(3, 4), (4,)], 1, 0.3)
    params = [torch.nn.Parameter(value.clone()) for value in start]
    optimizer = adafactor.Adafactor(params, weight_decay=0.1, beta1=0.9)
    optimizer.init_state()
    assert all(torch.equal(param, value) for param, value in zip(params, start))
    oracle = Oracle(start, [0, 0], weight_decay=0.1, beta1=0.9)
    grads = gradients([(3, 4), (4,)], 0)
    for param, grad in zip(params, grads):
        assert optimizer.state[param]["step"] == 0
        param.grad = grad.clone()
    optimizer.step()
    oracle.step(grads)
    assert largest_error([param.detach() for param in params], oracle.values()) <= TOLERANCE


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.0},
        {"lr": -1.0},
        {"relative_step": False},
        {"weight_decay": -0.1},
        {"beta1": 1.0},
        {"clip_threshold": 0.0},
        {"decay_rate": 0.8},
        {"eps2": (1e-30,)},
        {"mode": "flat"},
    ],
    ids=str,
)
def test_options_that_cannot_be_used_are_refused_by_name(options):
    param = torch.nn.Parameter(torch.zeros(2))
    name = "lr" if options == {"relative_step": False} else next(iter(options))
    with pytest.raises(ValueError, match=f"Adafactor: {name} is"):
        adafactor.Adafactor([param], **options)
    with pytest.raises(ValueError, match=f"Adafactor: {name} is"):
        adafactor.Adafactor([{"params": [param], **options}])


def test_sparse_gradients_and_wrong_batch_dims_are_refused():
    param = torch.nn.Parameter(torch.zeros(2, 3))
    param.grad = torch.zeros(2, 3).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        adafactor.Adafactor([param]).step()
    param = torch.nn.Parameter(torch.zeros(2, 3, 4))
    param.adafactor_batch_dims = 0
    with pytest.raises(ValueError, match="adafactor_batch_dims is 0"):
        adafactor.Adafactor([param]).init_state()


def test_a_closure_is_called_with_gradients_and_its_loss_returned():
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = adafactor.Adafactor([param])

    def closure():
        loss = (param * param).sum()
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) == 3.0
    assert float(param.detach().max()) < 1.0
