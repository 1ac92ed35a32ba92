"""Passes over memory of one device: elementwise, reductions, the optimizer's, copies."""

from __future__ import annotations

import math
from typing import Any, Callable

from dsmoe.benchmark.calibrate.clock import Clock
from dsmoe.benchmark.calibrate.shapes import Shapes


def passes(clock: Clock, shapes: Shapes, dtype: str, tokens: int) -> None:
    """Elementwise passes and reductions, each an operation of its own, forward and backward."""
    torch = clock.torch
    import torch.nn.functional as F

    width = shapes.widths[0]
    kind = getattr(torch, dtype)
    shape = (tokens, width)
    scores = (max(1, tokens // shapes.length), shapes.heads, shapes.length, shapes.length)
    logits = (min(tokens, 16384), shapes.vocabulary)

    def unary(
        operate: Callable[[Any], Any], at: tuple[int, ...], dtype_: Any = kind
    ) -> Callable[[], Callable[[], object]]:
        def make() -> Callable[[], object]:
            x = torch.randn(*at, device=clock.device).to(dtype_)
            return lambda: operate(x)

        return make

    def backward(
        operate: Callable[[Any], Any], at: tuple[int, ...], dtype_: Any = kind
    ) -> Callable[[], Callable[[], object]]:
        def make() -> Callable[[], object]:
            x = torch.randn(*at, device=clock.device).to(dtype_).requires_grad_(True)
            out = operate(x)
            grad = torch.ones_like(out)
            return lambda: torch.autograd.grad(out, x, grad, retain_graph=True)

        return make

    def norm(x: Any, width: int = width) -> Any:
        return F.layer_norm(x, (width,))

    wide = (tokens, width * shapes.factor)
    labels = torch.zeros(logits[0], dtype=torch.int64, device=clock.device)

    def loss(x: Any, labels: Any = labels) -> Any:
        return F.cross_entropy(x.float(), labels)

    todo: tuple[tuple[str, Any, tuple[int, ...]], ...] = (
        ("gelu", lambda x: F.gelu(x, approximate="tanh"), wide),
        ("layer-norm", norm, shape),
        ("dropout", lambda x: F.dropout(x, 0.1), shape),
        ("softmax", lambda x: torch.softmax(x, -1), scores),
        ("dropout-scores", lambda x: F.dropout(x, 0.1), scores),
        ("cross-entropy", loss, logits),
    )
    for name, operate, at in todo:
        size = {"elements": math.prod(at), "dtype": dtype, "width": at[-1]}
        clock.measure(unary(operate, at), {"kind": "pass", "name": name, **size})
        clock.measure(backward(operate, at), {"kind": "pass", "name": f"{name}-backward", **size})
        clock.free()
    simple: tuple[tuple[str, Any, tuple[int, ...]], ...] = (
        ("add", lambda x: x + x, wide),
        ("cast-fp32", lambda x: x.float() if x.dtype != torch.float32 else x + 0, wide),
        ("masked-fill", lambda x: x.masked_fill(x > 0, -1e4), scores),
        ("sum-rows", lambda x: x.sum(0), wide),
    )
    for name, operate, at in simple:
        size = {"elements": math.prod(at), "dtype": dtype, "width": at[-1]}
        clock.measure(unary(operate, at), {"kind": "pass", "name": name, **size})
        clock.free()
    _gather(clock, tokens, width, dtype)


def _gather(clock: Clock, tokens: int, width: int, dtype: str) -> None:
    torch = clock.torch

    def make() -> Callable[[], object]:
        x = torch.randn(tokens, width, device=clock.device).to(getattr(torch, dtype))
        at = torch.randint(0, tokens, (2 * tokens,), device=clock.device)
        return lambda: x[at]

    size = {"elements": 2 * tokens * width, "dtype": dtype, "width": width}
    clock.measure(make, {"kind": "pass", "name": "gather-rows", **size})


def gating(clock: Clock, shapes: Shapes) -> None:
    """The one-hot tensors of DeepSpeed's own layer: running counts, [S, E, C] products."""
    torch = clock.torch
    for tokens in (8192, 16384) if clock.cuda else shapes.tokens[:1]:
        for experts in shapes.experts:

            def counts(tokens: int = tokens, experts: int = experts) -> Callable[[], object]:
                x = torch.ones(tokens, experts, dtype=torch.int64, device=clock.device)
                return lambda: torch.cumsum(x, dim=0)

            def one_hot(tokens: int = tokens, experts: int = experts) -> Callable[[], object]:
                x = torch.zeros(tokens, dtype=torch.int64, device=clock.device)
                return lambda: torch.nn.functional.one_hot(x, num_classes=experts)

            capacity = 2 * tokens // experts

            def outer(
                tokens: int = tokens, experts: int = experts, capacity: int = capacity
            ) -> Callable[[], object]:
                gate = torch.rand(tokens, experts, device=clock.device)
                place = torch.rand(tokens, capacity, device=clock.device)
                return lambda: torch.einsum("se,sc->sec", gate, place)

            def dispatch(
                tokens: int = tokens, experts: int = experts, capacity: int = capacity
            ) -> Callable[[], object]:
                kind = getattr(torch, shapes.dtypes[-1])
                x = torch.zeros(tokens, shapes.widths[0], dtype=kind, device=clock.device)
                mask = torch.zeros(tokens, experts, capacity, dtype=kind, device=clock.device)
                return lambda: torch.einsum("sec,sm->ecm", mask, x)

            for name, make in (
                ("cumsum", counts),
                ("one-hot", one_hot),
                ("outer", outer),
                ("dispatch-product", dispatch),
            ):
                clock.measure(
                    make, {"kind": "gating", "name": name, "tokens": tokens, "experts": experts}
                )
                clock.free()


def optimizer_passes(clock: Clock, shapes: Shapes, count: int) -> None:
    """Passes over fp32 partitions: add, multiply, square, norm, one step of AdamW."""
    torch = clock.torch

    size = {"elements": count, "dtype": "float32"}

    def on_two(operate: Callable[[Any, Any], Any]) -> Callable[[], Callable[[], object]]:
        def make() -> Callable[[], object]:
            x = torch.ones(count, device=clock.device)
            y = torch.ones(count, device=clock.device)
            return lambda: operate(x, y)

        return make

    for name, operate in (
        ("add-in-place", lambda x, y: x.add_(y)),
        ("multiply", lambda x, y: x * y),
        ("square-root", lambda x, y: x.rsqrt()),
        ("norm", lambda x, y: x.norm()),
        ("cast-fp16", lambda x, y: x.to(torch.float16)),
    ):
        clock.measure(
            on_two(operate),
            {"kind": "optimizer", "name": name, **size},
        )

    def adamw() -> Callable[[], object]:
        x = torch.ones(count, device=clock.device, requires_grad=True)
        x.grad = torch.ones_like(x)
        made = torch.optim.AdamW([x], fused=True) if clock.cuda else torch.optim.AdamW([x])
        return lambda: made.step()

    clock.measure(adamw, {"kind": "optimizer", "name": "adamw", **size})
    clock.free()


def copies(clock: Clock, shapes: Shapes) -> None:
    """Copies within the device, to the host and back, and to the next device."""
    torch = clock.torch
    for size in shapes.copies:

        def inside(size: int = size) -> Callable[[], object]:
            x = torch.zeros(size, dtype=torch.uint8, device=clock.device)
            y = torch.empty_like(x)
            return lambda: y.copy_(x)

        clock.measure(inside, {"kind": "copy", "name": "inside", "bytes": size})
        if not clock.cuda:
            continue

        def to_host(size: int = size) -> Callable[[], object]:
            x = torch.zeros(size, dtype=torch.uint8, device=clock.device)
            y = torch.empty(size, dtype=torch.uint8, pin_memory=True)
            return lambda: y.copy_(x, non_blocking=True)

        def to_peer(size: int = size) -> Callable[[], object]:
            x = torch.zeros(size, dtype=torch.uint8, device=clock.device)
            y = torch.empty(size, dtype=torch.uint8, device="cuda:1")
            return lambda: y.copy_(x, non_blocking=True)

        if size <= 1 << 28:
            clock.measure(to_host, {"kind": "copy", "name": "to-host", "bytes": size})
        if torch.cuda.device_count() > 1:
            clock.measure(to_peer, {"kind": "copy", "name": "to-peer", "bytes": size})
        clock.free()
