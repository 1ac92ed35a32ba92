"""One model over two processes: the same weights, losses and gradients as one process.

The definition is one process that sees both micro-batches in turn, with the same weights and
local groups of tokens. Float64, so that the tolerance (1e-12) leaves no room for a wrong factor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

CONFIG = {
    "hidden_size": 16,
    "num_layers": 4,
    "num_experts": 4,
    "num_heads": 2,
    "vocab_size": 32,
    "sequence_length": 8,
    "min_capacity": 1,
    "capacity_factor": 0.75,
    "group_size": 12,
    "second_expert_policy": "all",
    "z_loss_coefficient": 0.1,
}
VERSION = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
COMPILES = VERSION >= (2, 13)  # earlier releases were not tried
EXPERTS = ".deepspeed_moe.experts.stacked."


def tokens_of(rank: int) -> torch.Tensor:
    return torch.randint(32, (3, 9), generator=torch.Generator().manual_seed(rank))


def step(implementation: str, tokens: torch.Tensor, compiled: bool = False) -> dict:
    """Weights, loss and gradients by name; expert weights as they are held here."""
    from deepspeed.moe.lm import MoELM, MoELMConfig, evaluate

    torch.manual_seed(7)
    model = MoELM(MoELMConfig(moe_implementation=implementation, **CONFIG))
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.double()
    run = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
    loss = run(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    return {
        "weights": weights,
        "loss": loss.detach(),
        "gradients": {name: p.grad for name, p in model.named_parameters()},
        "perplexity": evaluate(model, [tokens], all_processes=True),
    }


def operators() -> Any:
    """A context whose ``names`` are those of our own operators that ran inside it."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Operators(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: set[str] = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore
            if func.namespace == "dsmoe":
                self.names.add(func._schema.name.split("::")[1])
            return func(*args, **(kwargs or {}))

    return Operators()


def worker(rank: int, folder: str) -> None:
    import torch.distributed as dist
    from deepspeed.moe.kernels.policy import KernelPolicy, Libraries, using
    from deepspeed.utils import groups

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    groups.initialize(ep_size=2)
    found = {name: step(name, tokens_of(rank)) for name in ("index", "einsum")}
    if COMPILES:
        found["compiled"] = step("index", tokens_of(rank), compiled=True)

        class Overlapping(KernelPolicy):
            """The answer of a Hopper GPU; here the operators compute by formulas."""

            def overlaps_exchange(self, x: torch.Tensor, group_name: str | None) -> bool:
                return True

        with using(Overlapping(Libraries())):
            with operators() as called:
                found["overlapped"] = step("index", tokens_of(rank))
            assert called.names >= {"exchanged_experts", "exchanged_experts_backward"}
            assert "all_to_all" not in called.names
            found["overlapped and compiled"] = step("index", tokens_of(rank), compiled=True)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder: Path = tmp_path_factory.mktemp("two")
    mp.spawn(worker, args=(str(folder),), nprocs=2)
    arguments = {} if torch.__version__.startswith("1.") else {"weights_only": False}
    return [torch.load(folder / f"{rank}.pt", **arguments) for rank in range(2)]


@pytest.mark.parametrize("implementation", ["index", "einsum"])
def test_two_processes_equal_one(implementation: str, two: list[dict], one_process: None) -> None:
    held = [rank[implementation] for rank in two]
    alone = [step(implementation, tokens_of(rank)) for rank in range(2)]
    for rank in range(2):
        torch.testing.assert_close(held[rank]["loss"], alone[rank]["loss"], rtol=0, atol=1e-12)
    for name, weight in alone[0]["weights"].items():
        total = alone[0]["gradients"][name] + alone[1]["gradients"][name]
        if EXPERTS in name:
            weights = torch.cat([rank["weights"][name] for rank in held])
            found = torch.cat([rank["gradients"][name] for rank in held])
        else:
            weights = held[0]["weights"][name]
            assert torch.equal(weights, held[1]["weights"][name])
            found = held[0]["gradients"][name] + held[1]["gradients"][name]
        assert torch.equal(weights, weight), name
        torch.testing.assert_close(found, total, rtol=0, atol=1e-12, msg=name)


@pytest.mark.skipif(not COMPILES, reason="compiled exchange was tried from torch 2.13 on")
@pytest.mark.parametrize("form", ["compiled", "overlapped", "overlapped and compiled"])
def test_every_form_of_the_exchange_gives_the_same_gradients(form: str, two: list[dict]) -> None:
    """Compiled (one graph), and beside the experts' work, to 1e-12 of the plain model."""
    for rank in two:
        plain, other = rank["index"], rank[form]
        torch.testing.assert_close(other["loss"], plain["loss"], rtol=0, atol=1e-12)
        for name, gradient in plain["gradients"].items():
            torch.testing.assert_close(
                other["gradients"][name], gradient, rtol=0, atol=1e-12, msg=name
            )


def test_evaluation_adds_up_over_the_processes(two: list[dict], one_process: None) -> None:
    alone = [step("index", tokens_of(rank))["perplexity"] for rank in range(2)]
    found = [rank["index"]["perplexity"] for rank in two]
    assert found[0] == found[1]
    assert found[0].tokens == alone[0].tokens + alone[1].tokens
    mean = (alone[0].cross_entropy + alone[1].cross_entropy) / 2
    assert found[0].cross_entropy == pytest.approx(mean, abs=1e-12)
