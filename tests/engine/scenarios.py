"""What the processes of the engine tests do: train the language model in one way or another.

A scenario is a dictionary of the keys of ``DEFAULTS``. The micro-batches of a step are numbered
0 to M-1; process r of R takes a·R + r for its a-th, so that every R with the same M trains on the
same global batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.moe.lm import MoELM, MoELMConfig, param_groups
from deepspeed.moe.utils import is_moe_param
from deepspeed.ops.adafactor import Adafactor
from deepspeed.utils import groups

DEFAULTS: dict[str, Any] = {
    "stage": 2,
    "accumulation": 1,
    "expert_parallel": 1,
    "precision": "fp32",
    "optimizer": "SGD",
    "clip": 0.5,
    "steps": 8,
    "bucket": 3000,  # several buckets a step
    "flip_groups": False,
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
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.5},
    "AdamW": {"lr": 1e-2, "weight_decay": 0.1},
    "Adafactor": {"lr": 1e-1, "relative_step": False, "weight_decay": 0.1},
}


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
    for name in ("_MODEL", "_EXPERT", "_EXPERT_DATA", "_DATA"):
        setattr(groups, f"{name}_PARALLEL_GROUP", None)
    groups.initialize(ep_size=scenario["expert_parallel"])
    return MoELM(MoELMConfig(**{**MODEL, **scenario["model"]}), seed=scenario["seed"])


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
        }
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
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=parameters, config=engine_config(scenario)
    )
    return engine


def train_steps(engine: Any, scenario: dict[str, Any], first: int, last: int) -> dict[str, Any]:
    """Steps ``first`` to ``last`` - 1; losses are means over all processes' micro-batches."""
    world, rank = dist.get_world_size(), dist.get_rank()
    accumulation = scenario["accumulation"]
    data = tokens(scenario, accumulation * world).to(engine.device)
    losses, norms = [], []
    for step in range(first, last):
        total = torch.zeros(1, dtype=torch.float64, device=engine.device)
        for a in range(accumulation):
            batch = data[step, a * world + rank]
            loss = engine(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
            total += loss.detach().double()
            engine.backward(loss)
            engine.step()
        dist.all_reduce(total)
        losses.append(total.item() / (accumulation * world))
        norms.append(engine.get_global_grad_norm())
    return {"losses": losses, "norms": norms}


def train(scenario: dict[str, Any]) -> dict[str, Any]:
    """Train through the engine; losses, gradient norms and the final weights of all experts."""
    scenario = full(scenario)
    engine = start_engine(scenario)
    result = train_steps(engine, scenario, 0, scenario["steps"])
    return {**result, "weights": whole_weights(engine.module)}


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
    model = build(scenario)
    kind = {"SGD": torch.optim.SGD, "AdamW": torch.optim.AdamW, "Adafactor": Adafactor}
    optimizer = kind[scenario["optimizer"]](model.parameters(), **OPTIMIZERS[scenario["optimizer"]])
    data = tokens(scenario, micro_batches)
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


def save_and_resume(scenario: dict[str, Any], folder: str, half: int) -> dict[str, Any]:
    """Train on with a fresh engine from a checkpoint of step ``half``; both halves' losses."""
    scenario = full(scenario)
    steps = scenario["steps"]
    engine = start_engine(scenario)
    train_steps(engine, scenario, 0, half)
    engine.save_checkpoint(folder, tag="half", client_state={"mine": 7})
    expected = train_steps(engine, scenario, half, steps)
    expected["weights"] = whole_weights(engine.module)
    return {"expected": expected, "resumed": resume(scenario, folder, half)}


def resume(scenario: dict[str, Any], folder: str, half: int) -> dict[str, Any]:
    """The rest of the steps after loading ``folder`` into a model of other initial weights."""
    scenario = full(scenario)
    other = build({**scenario, "seed": 99})
    engine = start_engine(scenario, other)
    path, client_state = engine.load_checkpoint(folder, tag="half")
    assert path is not None and client_state["mine"] == 7
    assert engine.global_steps == half
    result = train_steps(engine, scenario, half, scenario["steps"])
    return {**result, "weights": whole_weights(engine.module)}


def save_and_resume_all(
    scenarios: list[dict[str, Any]], folder: str, half: int
) -> list[dict[str, Any]]:
    return [save_and_resume(s, f"{folder}/{i}", half) for i, s in enumerate(scenarios)]


def load_error(scenario: dict[str, Any], folder: str, tag: str) -> str:
    """What loading ``tag`` raises; empty if it loads."""
    engine = start_engine(full(scenario))
    try:
        engine.load_checkpoint(folder, tag=tag)
    except RuntimeError as error:
        return str(error)
    return ""


def weights_after_loading(
    scenario: dict[str, Any], folder: str, tag: str | None, module_only: bool
) -> dict[str, Any]:
    """The model's weights after loading, and ZeRO's fp32 copies of them flattened together."""
    scenario = full({**scenario, "seed": 99})
    engine = start_engine(scenario)
    path, _ = engine.load_checkpoint(folder, tag=tag, load_module_only=module_only)
    partitions = getattr(engine.optimizer, "single_partition_of_fp32_groups", [])
    return {
        "loaded": path is not None,
        "weights": whole_weights(engine.module),
        "masters": [p.detach().clone() for p in partitions],
    }


def train_and_save(scenario: dict[str, Any], folder: str, tags: list[str]) -> dict[str, Any]:
    """Train one step before each tag and save it."""
    scenario = full(scenario)
    engine = start_engine(scenario)
    for step, tag in enumerate(tags):
        train_steps(engine, scenario, step, step + 1)
        engine.save_checkpoint(folder, tag=tag)
    return whole_weights(engine.module)


def reduced_slices(scenario: dict[str, Any]) -> dict[str, Any]:
    """Every slice that ZeRO reduces in one step: (its elements, the processes of its group)."""
    scenario = full(scenario)
    engine = start_engine(scenario)
    calls = []
    real = dist.reduce

    def watched(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append((tensor.numel(), dist.get_world_size(kwargs["group"])))
        return real(tensor, *args, **kwargs)

    dist.reduce = watched
    try:
        train_steps(engine, scenario, 0, 1)
    finally:
        dist.reduce = real
    elements: dict[int, int] = {}
    for numel, size in calls:
        elements[size] = elements.get(size, 0) + numel
    held = {"dense": 0, "expert": 0}
    for parameter in engine.module.parameters():
        held["expert" if is_moe_param(parameter) else "dense"] += parameter.numel()
    return {"reduced": elements, "held": held}


def gate_reductions(scenario: dict[str, Any]) -> dict[str, int]:
    """How often ZeRO has reduced the gradient of each gate in three steps."""
    scenario = full(scenario)
    model = build(scenario)
    engine = start_engine(scenario, model)
    names = {id(p): n for n, p in model.named_parameters()}
    reduced = {n: 0 for n in names.values() if "gate.wg" in n}
    real = engine.optimizer.reduce_independent_p_g_buckets_and_remove_grads

    def watched(parameter: torch.Tensor, group: int) -> None:
        if names[id(parameter)] in reduced:
            reduced[names[id(parameter)]] += 1
        real(parameter, group)

    engine.optimizer.reduce_independent_p_g_buckets_and_remove_grads = watched
    train_steps(engine, scenario, 0, 3)
    return reduced


def weights_after_start(scenario: dict[str, Any]) -> dict[str, Any]:
    """Has starting the engine changed a weight or counted a step?"""
    scenario = full(scenario)
    model = build(scenario)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    engine = start_engine(scenario, model)
    steps = [float(s["step"]) for s in engine.optimizer.optimizer.state.values() if "step" in s]
    masters = [p.detach().clone() for p in engine.optimizer.single_partition_of_fp32_groups]
    total = sum(float(p.double().sum()) for p in before.values())
    return {
        "steps": steps,
        "master_sum": sum(float(p.double().sum()) for p in masters),
        "weight_sum": total,
    }


def bucket_after_backward(scenario: dict[str, Any]) -> dict[str, Any]:
    """How much of the reduce bucket one backward pass has written or divided."""
    scenario = full(scenario)
    engine = start_engine(scenario)
    seen = []
    real = engine.optimizer.average_tensor

    def watched(tensor: torch.Tensor) -> None:
        tensor[engine.optimizer.elements_in_ipg_bucket :] = 8.0
        real(tensor)
        rest = tensor[engine.optimizer.elements_in_ipg_bucket :]
        seen.append((int(rest.numel()), bool((rest == 8.0).all())))

    engine.optimizer.average_tensor = watched
    train_steps(engine, scenario, 0, 1)
    return {"seen": seen}


def unfused_norm(scenario: dict[str, Any]) -> dict[str, Any]:
    """The gradient norm that fp16 without ZeRO reports, and what its gradients add up to."""
    scenario = full(scenario)
    engine = start_engine(scenario)
    optimizer = engine.optimizer
    expected = []
    real = optimizer.unscale_and_clip_grads

    def watched(norm: float, *args: Any, **kwargs: Any) -> Any:
        dense = torch.zeros(1, dtype=torch.float64)
        expert = torch.zeros(1, dtype=torch.float64)
        for group in optimizer.fp16_groups:
            for p in group:
                (expert if is_moe_param(p) else dense).add_(p.grad.double().pow(2).sum())
        dist.all_reduce(expert, group=groups.get_expert_parallel_group())
        expected.append(float((dense + expert).sqrt()))
        return real(norm, *args, **kwargs)

    optimizer.unscale_and_clip_grads = watched
    found = train_steps(engine, scenario, 0, 2)["norms"]
    return {"found": found, "expected": expected}


def timers_used(scenario: dict[str, Any]) -> dict[str, Any]:
    """The MoE timers that one step of DeepSpeed's own layer has started."""
    scenario = full(scenario)
    engine = start_engine(scenario)
    train_steps(engine, scenario, 0, 1)
    layers = [*engine.moe_layers, *engine.gate_modules]
    return {"layers": len(layers), "timers": [list(layer.timers.timers) for layer in layers]}


def experts_of_own_layer(expert_parallel: int) -> dict[str, torch.Tensor]:
    """First weights of the experts of DeepSpeed's own layer, by global expert number."""
    scenario = full({"expert_parallel": expert_parallel})
    build(scenario)
    torch.manual_seed(3)
    from deepspeed.moe.layer import MoE

    layer = MoE(8, torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 8)), 4, k=2)
    experts = layer.deepspeed_moe.experts.deepspeed_experts
    first = groups.get_expert_parallel_rank() * len(experts)
    return {
        **{str(first + i): e[0].weight.detach().clone() for i, e in enumerate(experts)},
        "after": torch.rand(4),
    }


def adafactor_state_sizes(scenario: dict[str, Any]) -> dict[str, int]:
    """Elements of this rank's partitions and of the optimizer's state, in either mode."""
    sizes = {}
    for mode in ("sharded", "artifact"):
        scenario = full(scenario)
        params = {**OPTIMIZERS["Adafactor"], "mode": mode}
        config = {"optimizer": {"type": "Adafactor", "params": params}}
        engine = start_engine({**scenario, "config": config})
        train_steps(engine, scenario, 0, 1)
        partitions = engine.optimizer.single_partition_of_fp32_groups
        sizes["elements"] = sum(p.numel() for p in partitions)
        sizes[mode] = sum(_elements(s) for s in engine.optimizer.optimizer.state.values())
    return sizes


def _elements(state: Any) -> int:
    if torch.is_tensor(state):
        return state.numel()
    return sum(map(_elements, state.values())) if isinstance(state, dict) else 0


def warnings_of_a_run(scenario: dict[str, Any], folder: str) -> list[str]:
    """What Python warns of between building the engine and saving a checkpoint."""
    import warnings

    scenario = full(scenario)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine = start_engine(scenario)
        train_steps(engine, scenario, 0, scenario["steps"])
        engine.save_checkpoint(folder, tag="one")
    ignored = (ResourceWarning,)  # off by default in Python
    return [str(w.message) for w in caught if not issubclass(w.category, ignored)]


def parameter_dtypes(scenario: dict[str, Any]) -> list[str]:
    engine = start_engine(full(scenario))
    return sorted({str(p.dtype) for p in engine.module.parameters()})


def save_that_is_stopped(scenario: dict[str, Any], folder: str) -> dict[str, Any]:
    """Save tag "one", then again with every file torn half-way; does the first one still load?"""
    scenario = full(scenario)
    engine = start_engine(scenario)
    train_steps(engine, scenario, 0, 1)
    engine.save_checkpoint(folder, tag="one")
    saved = whole_weights(engine.module)
    train_steps(engine, scenario, 1, 2)
    real = torch.save

    def torn(state: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        if not hasattr(file, "write"):
            file = Path(file).open("wb")  # noqa: SIM115
        file.write(b"half of it")
        file.flush()
        raise KeyboardInterrupt

    torch.save = torn
    try:
        engine.save_checkpoint(folder, tag="one")
        stopped = False
    except KeyboardInterrupt:
        stopped = True
    finally:
        torch.save = real
    engine.load_checkpoint(folder)
    return {"stopped": stopped, "saved": saved, "loaded": whole_weights(engine.module)}
