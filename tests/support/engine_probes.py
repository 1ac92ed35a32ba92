"""What the processes do in the tests of loaded weights, first rates, norms, loaders and scales."""

from __future__ import annotations

import io
import logging
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime import engine as engine_module
from deepspeed.utils import logger

from support.resume_probes import loss_scale
from support.scenarios import build, end, end_groups, full, start_engine, train_steps, whole_weights

STILL = {"optimizer": {"type": "SGD", "params": {"lr": 0.0}}}


def weights_after_a_still_step(case: dict[str, Any], folder: str, how: str) -> dict[str, float]:
    """Load weights in the way ``how``, take a step with lr 0: how far they are off what was loaded.

    ``how`` is an argument of load_checkpoint that is not its default, or "module" or "engine" for a
    ``load_state_dict`` of the module or a ``load_module_state_dict`` of the engine.
    """
    scenario = full({**case, "steps": 1})
    scenario["config"] = {**scenario["config"], **STILL}
    saver = start_engine(scenario, build({**scenario, "seed": 1}))
    saver.save_checkpoint(folder, tag="x")
    state = {name: value.clone() for name, value in saver.module.state_dict().items()}
    wanted = whole_weights(saver.module)
    end(saver)
    engine = start_engine(scenario, build({**scenario, "seed": 2}))
    if how == "module":
        engine.module.load_state_dict(state)
    elif how == "engine":
        engine.load_module_state_dict(state)
    else:
        engine.load_checkpoint(folder, tag="x", **{how: how == "load_module_only"})
    loaded = _apart(whole_weights(engine.module), wanted)
    train_steps(engine, scenario, 0, 1)
    result = {"loaded": loaded, "stepped": _apart(whole_weights(engine.module), wanted)}
    end(engine)
    return result


def _apart(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    return max(float((found[name] - wanted[name]).abs().max()) for name in wanted)


def masters_after_loading(case: dict[str, Any], folder: str) -> bool:
    """Without ZeRO and without optimizer states: are the masters the saved ones, in fp32?"""
    scenario = full({**case, "steps": 2})
    saver = start_engine(scenario, build({**scenario, "seed": 1}))
    train_steps(saver, scenario, 0, 2)
    saver.save_checkpoint(folder, tag="x")
    wanted = [p.detach().clone() for group in saver.optimizer.fp32_groups for p in group]
    end(saver)
    engine = start_engine(scenario, build({**scenario, "seed": 2}))
    engine.load_checkpoint(folder, tag="x", load_optimizer_states=False)
    found = [p.detach().clone() for group in engine.optimizer.fp32_groups for p in group]
    end(engine)
    return all(torch.equal(a, b) for a, b in zip(found, wanted))


def copies_of_the_module(case: dict[str, Any]) -> bool:
    """The module can be pickled and copied although its engine watches it; copies do not act."""
    import copy

    scenario = full({**case, "steps": 1})
    engine = start_engine(scenario)
    file = io.BytesIO()
    torch.save(engine.module, file)
    twin = copy.deepcopy(engine.module)
    before = [p.detach().clone() for p in engine.optimizer.single_partition_of_fp32_groups]
    twin.load_state_dict({name: value + 1 for name, value in twin.state_dict().items()})
    after = engine.optimizer.single_partition_of_fp32_groups
    return all(torch.equal(a, b) for a, b in zip(after, before))


def first_rates(case: dict[str, Any], schedule: dict[str, Any]) -> list[Any]:
    """Rates (and first betas) that steps 1 to 4 use."""
    scenario = full({**case, "steps": 4})
    scenario["config"] = {**scenario["config"], "scheduler": schedule}
    engine = start_engine(scenario)
    found = []
    for step in range(4):
        group = engine.optimizer.param_groups[0]
        found.append((engine.get_lr()[0], group.get("betas", (None,))[0]))
        train_steps(engine, scenario, step, step + 1)
    end(engine)
    return found


class Rows(torch.nn.Module):
    """An embedding whose rows get chosen gradients: row i that of the loss sum(x * g_i)."""

    def __init__(self, gradients: torch.Tensor, sparse: bool) -> None:
        super().__init__()
        rows, width = gradients.shape
        self.embedding = torch.nn.Embedding(rows, width, sparse=sparse)
        self.register_buffer("wanted", gradients)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return (self.embedding(rows) * self.wanted[rows]).sum()


def embedding_gradients(sparse: bool, module_sparse: bool, used: list[list[int]]) -> torch.Tensor:
    """The gradients of :class:`Rows` after the engine has averaged them, and plain torch's.

    ``used``: the rows that each process looks up. Rows 1 and 2 sum to 0, row 3 is 0.
    """
    end_groups()
    table = torch.tensor([[1.0, 2, 3, 4], [1, -1, 2, -2], [0.5, 0, 0, -0.5], [0, 0, 0, 0]])
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": {"type": "SGD", "params": {"lr": 0.1}},
        "sparse_gradients": sparse,
    }
    model = Rows(table, module_sparse)
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=model.parameters(), config=config
    )
    rows = torch.tensor(used[dist.get_rank()], dtype=torch.long, device=engine.device)
    engine.backward(engine(rows))
    grad = model.embedding.weight.grad
    found = (grad.to_dense() if grad.is_sparse else grad).clone().cpu()
    expected = torch.zeros_like(table)
    for each in used:
        for row in each:
            expected[row] += table[row] / len(used)
    end(engine)
    return torch.stack([found, expected])


def norms(case: dict[str, Any]) -> list[float]:
    """``get_global_grad_norm()`` after each step."""
    scenario = full(case)
    real = engine_module.FusedAdam
    if scenario.pop("fused_optimizer", False):
        engine_module.FusedAdam = torch.optim.AdamW  # DeepSpeed's own needs CUDA to be built
    try:
        engine = start_engine(scenario)
    finally:
        engine_module.FusedAdam = real
    found = train_steps(engine, scenario, 0, scenario["steps"])["norms"]
    assert all(isinstance(norm, float) for norm in found), found
    kind = type(engine.optimizer).__name__
    end(engine)
    return [kind, *found]


def norm_of_a_skipped_step() -> list[Any]:
    scenario = full({"stage": 2, "precision": "fp16", "steps": 2, "clip": 0.0})
    scenario["config"] = {"fp16": {"enabled": True, "initial_scale_power": 40}}
    engine = start_engine(scenario)
    found = train_steps(engine, scenario, 0, 2)["norms"]
    end(engine)
    return found


def epochs_of_the_loader(
    samples: int, options: dict[str, Any], folder: str, stop: list[int]
) -> dict[str, Any]:
    """Three epochs of an engine's loader, and what a resumed one goes on with.

    ``stop``: (epoch, batches of it) at which the checkpoint is saved.
    """
    engine, loader = _with_loader(samples, options)
    epochs, rest, saved = [], [], False
    for epoch in range(3):
        epochs.append([])
        for batch in loader:
            epochs[-1].append(batch.tolist())
            if saved:
                rest.append(batch.tolist())
            if [epoch, len(epochs[-1])] == stop:
                engine.save_checkpoint(folder, tag="x")
                saved = True
    length = len(loader)
    end(engine)
    engine, loader = _with_loader(samples, options)
    state = engine.load_checkpoint(folder, tag="x")[1]
    iter(loader)  # as RepeatingLoader does before its first batch: takes nothing
    resumed = []
    while len(resumed) < len(rest):
        resumed += [batch.tolist() for batch in loader]
    end(engine)
    return {
        "length": length,
        "epochs": epochs,
        "rest": rest,
        "resumed": resumed,
        "client": [key for key in state if "loader" in key],
    }


def _with_loader(samples: int, options: dict[str, Any]) -> tuple[Any, Any]:
    end_groups()
    model = torch.nn.Linear(1, 1)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": {"type": "SGD", "params": {"lr": 0.1}},
        **options,
    }
    engine, _, loader, _ = deepspeed.initialize(
        model=model,
        model_parameters=model.parameters(),
        config=config,
        training_data=list(range(samples)),
    )
    return engine, loader


def left_early(samples: int) -> list[Any]:
    """The first batches of three loops that are left after one batch each."""
    engine, loader = _with_loader(samples, {})
    found = []
    for _ in range(3):
        for batch in loader:
            found.append(batch.tolist())
            break
    end(engine)
    return found


def taken_before_and_after(samples: int, batches: int, folder: str | None) -> list[int]:
    """Samples that this process takes: the first ``batches``, then saved; or, with a checkpoint at
    ``folder`` already, the rest of the epoch after loading it."""
    engine, loader = _with_loader(samples, {})
    found: list[int] = []
    if batches:
        for number, batch in enumerate(loader, 1):
            found += batch.tolist()
            if number == batches:
                break
        engine.save_checkpoint(folder, tag="x")
    else:
        engine.load_checkpoint(folder, tag="x")
        for batch in loader:
            found += batch.tolist()
    end(engine)
    return found


def scales(case: dict[str, Any]) -> dict[str, Any]:
    """The loss scale before each step, and how many were skipped."""
    scenario = full(case)
    engine = start_engine(scenario)
    found = []
    for step in range(scenario["steps"]):
        found.append(loss_scale(engine))
        train_steps(engine, scenario, step, step + 1)
    result = {"scales": found, "skipped": engine.skipped_steps}
    end(engine)
    return result


def said_of_skipped_steps(case: dict[str, Any], bad: str) -> dict[str, Any]:
    """Lines that are logged, and the error that ends it, if one does; ``bad``: what is not finite.

    "loss" makes the loss NaN, "gradient" one gradient on the last process, "" nothing.
    """
    scenario = full(case)
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    engine = start_engine(scenario)
    if bad == "loss":
        real = engine.module.forward
        engine.module.forward = lambda *inputs: real(*inputs) * float("nan")
    elif bad == "gradient" and dist.get_rank() == dist.get_world_size() - 1:
        engine.module.final_norm.weight.register_hook(lambda grad: grad * float("inf"))
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    error = ""
    try:
        train_steps(engine, scenario, 0, scenario["steps"])
    except RuntimeError as found:
        error = str(found)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    steps = engine.global_steps
    end(engine)
    about = [
        line for line in lines if any(w in line.lower() for w in ("skip", "overflow", "scale"))
    ]
    return {"lines": about, "error": error, "steps": steps}
