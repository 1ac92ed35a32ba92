"""Every form of the exchange of tokens: of one model over two processes, and over hosts."""

from __future__ import annotations

import contextlib
from typing import Any, Iterator
from unittest import mock

import torch
import torch.distributed as dist
from deepspeed.moe.expert_hosts import exchange_by_hosts, levels_for
from deepspeed.moe.gshard.all_to_all import all_to_all, group_name
from deepspeed.moe.kernels import exchanged_experts, policy
from deepspeed.moe.lm import MoELM, MoELMConfig, evaluate
from deepspeed.utils import groups

from support.scenarios import DEVICE, OF_THIS_MACHINE, end_groups, on_hosts

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


def every_form_of_the_exchange(compiled: bool) -> dict[str, dict]:
    """``step`` of this rank's tokens by name of the form; the experts are on two processes.

    ``compiled``: also the forms that torch.compile traces.
    """
    rank = dist.get_rank()
    end_groups()
    groups.initialize(ep_size=2)
    policy.use(OF_THIS_MACHINE)
    found = {name: step(name, tokens_of(rank)) for name in ("index", "einsum")}
    if COMPILES:
        with policy.using(Overlapping(policy.Libraries())):
            with operators() as called:
                found["overlapped"] = step("index", tokens_of(rank))
            assert called.names >= {"exchanged_experts", "exchanged_experts_backward"}
            assert "all_to_all" not in called.names
            if compiled:
                torch.compiler.reset()
                found["overlapped and compiled"] = step("index", tokens_of(rank), compiled=True)
        if compiled:
            torch.compiler.reset()
            found["compiled"] = step("index", tokens_of(rank), compiled=True)
    end_groups()
    return found


ROWS, WIDTH, HIDDEN, LOCAL = 5, 4, 6, 2


def draws(rank: int, processes: int) -> list[torch.Tensor]:
    """What process ``rank`` has: rows [E, R, M], their results' gradient, w1, b1, w2, b2."""
    generator = torch.Generator().manual_seed(rank)
    rows = (processes * LOCAL, ROWS, WIDTH)
    weights = [(LOCAL, WIDTH, HIDDEN), (LOCAL, HIDDEN), (LOCAL, HIDDEN, WIDTH), (LOCAL, WIDTH)]
    return [torch.randn(size, generator=generator) for size in (rows, rows, *weights)]


@contextlib.contextmanager
def messages_counted(hosts: int) -> Iterator[dict[int, list[int]]]:
    """Of the messages to processes of other hosts their bytes, by the process of the run."""
    found: dict[int, list[int]] = {}
    per_host, own = dist.get_world_size() // hosts, dist.get_rank()
    whole, pairs = dist.all_to_all_single, dist.batch_isend_irecv

    def count(peer: int, part: torch.Tensor) -> None:
        if peer // per_host != own // per_host:
            found.setdefault(peer, []).append(part.nbytes)

    def counted_whole(out: torch.Tensor, x: torch.Tensor, group: Any) -> None:
        for peer, part in enumerate(x.chunk(dist.get_world_size(group))):
            count(dist.get_global_rank(group, peer), part)
        whole(out, x, group=group)

    def counted_pairs(operations: list[Any]) -> Any:
        for operation in operations:
            if operation.op is dist.isend:
                count(operation.peer, operation.tensor)
        return pairs(operations)

    with mock.patch.multiple(
        dist, all_to_all_single=counted_whole, batch_isend_irecv=counted_pairs
    ):
        yield found


def in_one_and_two_steps(hosts: int, compiled: bool = False) -> dict[str, Any]:
    """What every form of the exchange computes over all processes on ``hosts``, in one and in two
    steps, and its messages to other hosts; ``known``: whether two steps are taken."""
    world = dist.get_world_size()
    inputs = [t.to(DEVICE) for t in draws(dist.get_rank(), world)]
    end_groups()
    groups.initialize(ep_size=world)
    group = groups.get_expert_parallel_group()
    found: dict[str, Any] = {"known": [], "messages": []}
    for wanted in (False, True):
        with on_hosts(hosts):
            exchange_by_hosts(wanted)
        # On GPUs two steps by copy engines inside a host are compared with one step by NCCL.
        libraries = policy.Libraries(copy_engines=wanted and DEVICE == "cuda")
        policy.use(policy.KernelPolicy(libraries))
        found["known"].append(levels_for(group) is not None)
        results = _exchanged(inputs, group_name(group), hosts, compiled)
        found["messages"].append({form: sent for form, (_, sent) in results.items()})
        for form, (tensors, _) in results.items():
            found.setdefault(form, []).append(tensors)
    policy.use(OF_THIS_MACHINE)
    end_groups()
    return found


def _exchanged(
    inputs: list[torch.Tensor], name: str | None, hosts: int, compiled: bool
) -> dict[str, Any]:
    """By form of the exchange its tensors, and the bytes of its messages to other hosts."""
    x, dy, w1, b1, w2, b2 = inputs
    found = {}

    def doubled(rows: torch.Tensor) -> torch.Tensor:
        return all_to_all(rows * 2, name) / 2

    forms = {"operator": doubled}
    if compiled:
        torch.compiler.reset()
        forms["compiled"] = torch.compile(doubled, fullgraph=True, backend="aot_eager")
    for form, exchange in forms.items():
        rows = x.clone().requires_grad_()
        with messages_counted(hosts) as sent:
            y = exchange(rows)
            y.backward(dy)
        found[form] = [y.detach(), rows.grad], sent
    with messages_counted(hosts) as sent:
        y, *kept = exchanged_experts.forward(x, w1, b1, w2, b2, name)
        gradients = exchanged_experts.backward(dy, *kept, w1, w2, name)
    found["overlapped"] = [y, *kept, *gradients], sent
    return found
