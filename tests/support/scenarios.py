"""What the processes of the engine tests do: train the language model in one way or another.

A scenario is a dictionary of the keys of ``DEFAULTS``. The micro-batches of a step are numbered
0 to M-1; process r of R takes a·R + r for its a-th, so that every R with the same M trains on the
same global batch.
"""

from __future__ import annotations

import contextlib
import gc
import os
from typing import Any, Iterator

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.moe.expert_hosts import exchange_by_hosts
from deepspeed.moe.kernels import policy
from deepspeed.moe.lm import MoELM, MoELMConfig, param_groups
from deepspeed.moe.utils import is_moe_param
from deepspeed.ops.adafactor import Adafactor
from deepspeed.runtime.micro_batch_graph import MicroBatchGraph, plain_micro_batch
from deepspeed.utils import groups

DEFAULTS: dict[str, Any] = {
    "stage": 2,
    "accumulation": 1,
    "expert_parallel": 1,
    "expert_layout": "inside",
    "precision": "fp32",
    "optimizer": "SGD",
    "clip": 0.5,
    "steps": 8,
    "bucket": 3000,  # several buckets a step
    "flip_groups": False,
    "hosts": 1,  # that the engine takes the processes to be on, as many on each
    "flat": False,  # zero_optimization.flat_gradients
    "compile": None,  # torch.compile's options, or no compiling
    "fused": False,  # GELU in products, loss with the output layer, also where no GPU is
    "graph": False,  # a micro-batch as a CUDA graph
    "seed": 0,
    "config": {},
    "model": {},
}
MODEL = {
    "hidden_size": 16,
    "num_layers": 2,
    "num_experts": 4,
    "num_heads": 2,
    "vocab_size": 48,
    "sequence_length": 12,
    "ffn_multiplier": 2,
    # Room for every choice: what is dropped would depend on nothing but the micro-batch, too, but
    # then an error in the routing could hide behind the drops.
    "capacity_factor": 4.0,
    "second_expert_policy": "all",
    "init_std": 0.2,
}
MICRO_BATCH = 2
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.5},
    "AdamW": {"lr": 1e-2, "weight_decay": 0.1},
    "Adafactor": {"lr": 1e-1, "relative_step": False, "weight_decay": 0.1},
}


OF_THIS_MACHINE = policy.kernels()


class FusedFormulas(policy.KernelPolicy):
    """Compiled regions have the operators of a GPU; without one these compute by formulas."""

    def fuses_gelu(self, x: torch.Tensor) -> bool:
        return torch.compiler.is_compiling()

    def fuses_loss(self, x: torch.Tensor) -> bool:
        return torch.compiler.is_compiling()


def full(scenario: dict[str, Any]) -> dict[str, Any]:
    return {**DEFAULTS, **scenario}


def tokens(scenario: dict[str, Any], micro_batches: int) -> torch.Tensor:
    """[steps, M, micro-batch, S + 1] of a Markov-like text that can be learned."""
    generator = torch.Generator().manual_seed(scenario["seed"] + 1)
    shape = (scenario["steps"], micro_batches, MICRO_BATCH, MODEL["sequence_length"] + 1)
    starts = torch.randint(0, MODEL["vocab_size"], (*shape[:-1], 1), generator=generator)
    jumps = torch.randint(0, 3, shape, generator=generator)
    return (starts + jumps.cumsum(-1)) % MODEL["vocab_size"]


def build(scenario: dict[str, Any]) -> MoELM:
    """The model of a scenario; makes the groups of its expert parallel size anew."""
    end_groups()
    layout = scenario["expert_layout"]
    groups.initialize(ep_size=scenario["expert_parallel"], expert_layout=layout)
    model = MoELM(MoELMConfig(**{**MODEL, **scenario["model"]}), seed=scenario["seed"])
    if scenario["compile"] is not None:
        torch.compiler.reset()  # a process of the pool compiles more models than one may
        model.compile_training(**scenario["compile"])
    policy.use(FusedFormulas(policy.Libraries()) if scenario["fused"] else OF_THIS_MACHINE)
    return model


def engine_config(scenario: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "train_batch_size": MICRO_BATCH * scenario["accumulation"] * dist.get_world_size(),
        "train_micro_batch_size_per_gpu": MICRO_BATCH,
        "gradient_accumulation_steps": scenario["accumulation"],
        "gradient_clipping": scenario["clip"],
        "optimizer": {
            "type": scenario["optimizer"],
            "params": dict(OPTIMIZERS[scenario["optimizer"]]),
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    if scenario["stage"]:
        config["zero_optimization"] = {
            "stage": scenario["stage"],
            "reduce_bucket_size": scenario["bucket"],
            "allgather_bucket_size": scenario["bucket"] * 2,
            "contiguous_gradients": True,
            "overlap_comm": False,
            "flat_gradients": scenario["flat"],
        }
    if scenario["optimizer"] == "AdamW":
        # torch's own: DeepSpeed's is a CUDA extension that would be built first
        config["optimizer"]["params"]["torch_adam"] = True
    if scenario["precision"] == "fp16":
        config["fp16"] = {"enabled": True, "loss_scale": 64.0}
    if scenario["precision"] == "bf16":
        config["bfloat16"] = {"enabled": True}
    return {**config, **scenario["config"]}


def start_engine(scenario: dict[str, Any], model: torch.nn.Module | None = None) -> Any:
    model = build(scenario) if model is None else model
    parameters = param_groups(model)
    if scenario["flip_groups"]:
        parameters.reverse()
    with on_hosts(scenario["hosts"]):
        engine, *_ = deepspeed.initialize(
            model=model, model_parameters=parameters, config=engine_config(scenario)
        )
        exchange_by_hosts(scenario["hosts"] > 1)
    return engine


@contextlib.contextmanager
def on_hosts(count: int) -> Iterator[None]:
    """Give neighbouring processes names of hosts as NCCL takes them; 1: this machine's own."""
    if count > 1:
        os.environ["NCCL_HOSTID"] = f"h{dist.get_rank() * count // dist.get_world_size()}"
    try:
        yield
    finally:
        if count > 1:
            del os.environ["NCCL_HOSTID"]


def train_steps(engine: Any, scenario: dict[str, Any], first: int, last: int) -> dict[str, Any]:
    """Steps ``first`` to ``last`` - 1; losses are means over all processes' micro-batches."""
    world, rank = dist.get_world_size(), dist.get_rank()
    accumulation = scenario["accumulation"]
    data = tokens(scenario, accumulation * world).to(engine.device)
    losses, norms = [], []
    micro_batch = (MicroBatchGraph if scenario["graph"] else plain_micro_batch)(engine)
    for step in range(first, last):
        total = torch.zeros(1, dtype=torch.float64, device=engine.device)
        for a in range(accumulation):
            batch = data[step, a * world + rank]
            loss = micro_batch(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
            total += loss.double()
            engine.step()
        dist.all_reduce(total)
        losses.append(total.item() / (accumulation * world))
        norms.append(engine.get_global_grad_norm())
    return {"losses": losses, "norms": norms}


def train(scenario: dict[str, Any]) -> dict[str, Any]:
    """Train through the engine; losses, gradient norms and the final weights of all experts."""
    scenario = full(scenario)
    engine = start_engine(scenario)
    start = whole_weights(engine.module)
    result = train_steps(engine, scenario, 0, scenario["steps"])
    result = {**result, "start": start, "weights": whole_weights(engine.module)}
    end(engine)
    return result


def end(engine: Any) -> None:
    """Ends the process groups of an engine, each of which has threads that wake all the time.

    Hooks in autograd's graph hold ZeRO's optimizer, so that no collector ever frees it: hundreds
    of engines in one process would keep the machine busy with waking.
    """
    parts = [engine, engine.optimizer, getattr(engine.optimizer, "optimizer", None)]
    for part in filter(None, parts):
        vars(part).clear()
    end_groups()
    gc.collect()
    c10d = dist.distributed_c10d
    known = c10d._world.pg_map if hasattr(c10d, "_world") else c10d._pg_map
    for group in list(known):
        if group is not c10d._get_default_group():
            dist.destroy_process_group(group)


def end_groups() -> None:
    for name in ("_MODEL", "_EXPERT", "_EXPERT_DATA", "_DATA"):
        old = getattr(groups, f"{name}_PARALLEL_GROUP")
        if old is not None:
            dist.destroy_process_group(old)
        setattr(groups, f"{name}_PARALLEL_GROUP", None)


def train_all(scenarios: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [train(scenario) for scenario in scenarios]


def whole_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter in fp32 on the CPU, the experts of all processes stacked in global order."""
    group = groups.get_expert_parallel_group()
    result = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach().float()
        if is_moe_param(parameter):
            parts = [torch.empty_like(value) for _ in range(dist.get_world_size(group))]
            dist.all_gather(parts, value.contiguous(), group=group)
            value = torch.cat(parts)
        result[name] = value.cpu()
    return result


def reference(scenario: dict[str, Any], micro_batches: int) -> dict[str, Any]:
    """One process, plain torch, no engine: the definition that every parallel run must equal."""
    scenario = full({**scenario, "expert_parallel": 1})
    model = build(scenario).to(DEVICE)
    kind = {"SGD": torch.optim.SGD, "AdamW": torch.optim.AdamW, "Adafactor": Adafactor}
    optimizer = kind[scenario["optimizer"]](model.parameters(), **OPTIMIZERS[scenario["optimizer"]])
    data = tokens(scenario, micro_batches).to(DEVICE)
    losses, norms = [], []
    for step in range(scenario["steps"]):
        optimizer.zero_grad()
        total = 0.0
        for batch in data[step]:
            loss = model(batch[:, :-1], batch[:, 1:])
            total += loss.item()
            (loss / micro_batches).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), scenario["clip"])
        optimizer.step()
        losses.append(total / micro_batches)
        norms.append(norm.item())
    return {"losses": losses, "norms": norms, "weights": whole_weights(model)}


def references(requests: list[tuple[dict[str, Any], int]]) -> list[dict[str, Any]]:
    return [reference(*request) for request in requests]
