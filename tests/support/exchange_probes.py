"""One model over two processes: every form of the exchange of tokens, in float64."""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.moe.kernels import policy
from deepspeed.moe.lm import MoELM, MoELMConfig, evaluate
from deepspeed.utils import groups

from support.scenarios import OF_THIS_MACHINE, end_groups

CONFIG = {
    "hidden_size": 16,
    "num_layers": 2,
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


def tokens_of(rank: int) -> torch.Tensor:
    return torch.randint(32, (3, 9), generator=torch.Generator().manual_seed(rank))


def step(implementation: str, tokens: torch.Tensor, compiled: bool = False) -> dict:
    """Weights, loss and gradients by name; expert weights as they are held here."""
    torch.manual_seed(7)
    model = MoELM(MoELMConfig(moe_implementation=implementation, **CONFIG))
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.double()
    run = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
    loss = run(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    perplexity = evaluate(model, [tokens], all_processes=True)
    return {
        "weights": weights,
        "loss": loss.detach(),
        "gradients": {name: p.grad for name, p in model.named_parameters()},
        "perplexity": [perplexity.tokens, perplexity.cross_entropy],
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


class Overlapping(policy.KernelPolicy):
    """The answer of a Hopper GPU; here the operators compute by formulas."""

    def overlaps_exchange(self, x: torch.Tensor, group_name: str | None) -> bool:
        return True


def every_form_of_the_exchange() -> dict[str, dict]:
    """``step`` of this rank's tokens by name of the form; the experts are on two processes."""
    rank = torch.distributed.get_rank()
    end_groups()
    groups.initialize(ep_size=2)
    policy.use(OF_THIS_MACHINE)
    found = {name: step(name, tokens_of(rank)) for name in ("index", "einsum")}
    if COMPILES:
        torch.compiler.reset()
        found["compiled"] = step("index", tokens_of(rank), compiled=True)
        with policy.using(Overlapping(policy.Libraries())):
            with operators() as called:
                found["overlapped"] = step("index", tokens_of(rank))
            assert called.names >= {"exchanged_experts", "exchanged_experts_backward"}
            assert "all_to_all" not in called.names
            found["overlapped and compiled"] = step("index", tokens_of(rank), compiled=True)
    end_groups()
    return found
