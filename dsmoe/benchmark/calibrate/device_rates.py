"""Products, attention and launches of one device."""

from __future__ import annotations

from typing import Any, Callable

from dsmoe.benchmark.calibrate.clock import Clock
from dsmoe.benchmark.calibrate.passes import copies, gating, optimizer_passes, passes
from dsmoe.benchmark.calibrate.shapes import Shapes

#: Seconds that products run without a pause, to see at which rate a hot card goes on.
SUSTAINED = 2.0


def measure_device(clock: Clock, shapes: Shapes) -> None:
    """Every rate of one device, the most used first."""
    main, others = shapes.widths[0], shapes.widths[1:]
    parts: list[tuple[Any, ...]] = [(launches,)]
    parts += [(products, d, main, n) for d in shapes.dtypes for n in shapes.tokens]
    parts += [(attention, d, main, n) for d in shapes.dtypes for n in shapes.batches]
    parts += [(passes, d, n) for d in shapes.dtypes for n in shapes.tokens]
    parts += [(optimizer_passes, n) for n in shapes.parameters]
    parts += [(gating,), (copies,), (sustained,)]
    for width in others:
        for dtype in shapes.dtypes:
            parts += [(products, dtype, width, n) for n in shapes.tokens[:2]]
            parts += [(attention, dtype, width, n) for n in shapes.batches]
    for measure, *arguments in parts:
        try:
            measure(clock, shapes, *arguments)
        except Exception as error:  # a part that cannot be set up costs its own rates alone
            words = f"{type(error).__name__}: {error}"[:300]
            clock.row(kind="note", name=measure.__name__, error=words)
            clock.free()


def products(clock: Clock, shapes: Shapes, dtype: str, width: int, tokens: int) -> None:
    """The products of a layer, forward and both gradients, of the experts and of the logits."""
    wide = width * shapes.factor
    plain = (
        ("qkv", tokens, width, 3 * width),
        ("attention-out", tokens, width, width),
        ("fc1", tokens, width, wide),
        ("fc2", tokens, wide, width),
        ("logits", min(tokens, 32768), width, shapes.vocabulary),
        ("fc1-weight-gradient", width, tokens, wide),
        ("fc2-weight-gradient", wide, tokens, width),
        ("qkv-weight-gradient", width, tokens, 3 * width),
        ("logits-weight-gradient", shapes.vocabulary, min(tokens, 32768), width),
    )
    for name, m, k, n in plain:
        _product(clock, name, dtype, (m, k), (k, n))
    # two choices a token: 2 x tokens rows, shared by the experts of a process
    for experts in shapes.experts[: 1 if clock.late() else None]:
        rows = 2 * tokens // experts
        _product(clock, "expert-fc1", dtype, (experts, rows, width), (experts, width, wide))
        _product(clock, "expert-fc2", dtype, (experts, rows, wide), (experts, wide, width))
        _product(clock, "expert-gradient", dtype, (experts, width, rows), (experts, rows, wide))


def _product(
    clock: Clock, name: str, dtype: str, left: tuple[int, ...], right: tuple[int, ...]
) -> None:
    torch = clock.torch
    kind = getattr(torch, dtype)
    transposed = "gradient" in name

    def make() -> Callable[[], object]:
        if transposed:  # as autograd has it: the left one is a transposed view
            b = torch.randn(*left[:-2], left[-1], left[-2], dtype=kind, device=clock.device)
            a = b.transpose(-1, -2)
        else:
            a = torch.randn(*left, dtype=kind, device=clock.device)
        b = torch.randn(*right, dtype=kind, device=clock.device)
        return lambda: torch.matmul(a, b)

    batch = left[0] if len(left) == 3 else 1
    m, k, n = left[-2], left[-1], right[-1]
    clock.measure(
        make, {"kind": "product", "name": name, "dtype": dtype, "shape": [batch, m, k, n]}
    )
    clock.free()


def attention(clock: Clock, shapes: Shapes, dtype: str, width: int, batch: int) -> None:
    """torch's fused causal attention, by its own choice and by each kernel; forward and both."""
    torch = clock.torch
    import torch.nn.functional as F

    size = width // shapes.heads
    what = {"kind": "attention", "dtype": dtype, "batch": batch, "heads": shapes.heads}
    what.update(length=shapes.length, size=size)

    def inputs() -> list[Any]:
        at = (batch, shapes.heads, shapes.length, size)
        kind = getattr(torch, dtype)
        return [
            torch.randn(*at, dtype=kind, device=clock.device, requires_grad=True) for _ in range(3)
        ]

    def forward(dropout: float) -> Callable[[], Callable[[], object]]:
        def make() -> Callable[[], object]:
            q, k, v = (t.detach() for t in inputs())
            return lambda: F.scaled_dot_product_attention(
                q, k, v, is_causal=True, dropout_p=dropout
            )

        return make

    def both(dropout: float) -> Callable[[], Callable[[], object]]:
        def make() -> Callable[[], object]:
            q, k, v = inputs()
            grad = torch.ones_like(q)

            def call() -> None:
                q.grad = k.grad = v.grad = None
                F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout).backward(
                    grad
                )

            return call

        return make

    for dropout in (0.0, 0.1):
        clock.measure(forward(dropout), {"name": "forward", "dropout": dropout, **what})
        clock.measure(both(dropout), {"name": "forward-backward", "dropout": dropout, **what})
    if clock.cuda:
        for backend in ("CUDNN_ATTENTION", "FLASH_ATTENTION"):
            _by(clock, backend, both(0.0), what)
    clock.free()


def _by(clock: Clock, backend: str, make: Any, what: dict[str, Any]) -> None:
    """One kernel of attention, without dropout."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def inside() -> Callable[[], object]:
        call = make()

        def with_kernel() -> None:
            with sdpa_kernel(getattr(SDPBackend, backend)):
                call()

        return with_kernel

    clock.measure(inside, {"name": f"forward-backward {backend}", "dropout": 0.0, **what})


def launches(clock: Clock, shapes: Shapes) -> None:
    """Host time an operation, forward and through autograd, and in a CUDA graph."""
    torch = clock.torch
    many = 200

    def eager() -> Callable[[], object]:
        x = torch.zeros(8, device=clock.device)

        def call() -> None:
            for _ in range(many):
                x.add_(1)

        return call

    def autograd() -> Callable[[], object]:
        x = torch.ones(8, device=clock.device, requires_grad=True)

        def call() -> None:
            y = x
            for _ in range(many):
                y = y * 1.5
            y.sum().backward()

        return call

    def linear() -> Callable[[], object]:
        layers = torch.nn.Sequential(*[torch.nn.Linear(8, 8) for _ in range(50)]).to(clock.device)
        x = torch.ones(8, 8, device=clock.device)
        return lambda: layers(x).sum().backward()

    def graph() -> Callable[[], object]:
        x = torch.zeros(8, device=clock.device)
        made = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            x.add_(1)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(made):
            for _ in range(many):
                x.add_(1)
        return lambda: made.replay()

    clock.measure(eager, {"kind": "launch", "name": "eager", "operations": many})
    clock.measure(autograd, {"kind": "launch", "name": "autograd", "operations": many})
    clock.measure(linear, {"kind": "launch", "name": "linear-forward-backward", "operations": 50})
    if clock.cuda:
        clock.measure(graph, {"kind": "launch", "name": "graph", "operations": many})


def sustained(clock: Clock, shapes: Shapes) -> None:
    """The two products of a feed-forward layer without a pause: what a hot card keeps up."""
    torch = clock.torch
    width, tokens = shapes.widths[0], shapes.tokens[0]

    def make() -> Callable[[], object]:
        kind = getattr(torch, shapes.dtypes[0])
        x = torch.randn(tokens, width, dtype=kind, device=clock.device)
        a = torch.randn(width, width * shapes.factor, dtype=kind, device=clock.device)
        b = torch.randn(width * shapes.factor, width, dtype=kind, device=clock.device)
        return lambda: (x @ a) @ b

    budget = SUSTAINED if clock.cuda else 0.3
    shape = [1, tokens, width, width * shapes.factor]
    what = {"name": "fc1 and fc2", "shape": shape, "dtype": shapes.dtypes[0]}
    clock.measure(make, {"kind": "sustained", **what}, budget)
    clock.free()
