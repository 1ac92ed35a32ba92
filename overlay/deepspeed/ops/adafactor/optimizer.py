"""AdaFactor for whole parameters, stacked experts, and the flat partitions of ZeRO-1/2."""

from __future__ import annotations

from itertools import chain
from typing import Any, Callable, Iterator, Sequence

import torch
from torch import Tensor

from .packed_sums import PackedSums
from .state import (
    ShardViews,
    cut_updates,
    new_state,
    shard_views,
    still_views,
    whole_block,
    whole_geometry,
    working_dtype,
)
from .tags import TAG_ATTRIBUTE, PartitionTag
from .update import Block, CutUpdate, Settings, settings, update_blocks

MODES = ("sharded", "artifact")

#: Marks a gradient whose memory the next step uses too, so that views of it are kept.
STAYS_ATTRIBUTE = "gradient_stays"

#: Units of one shape are updated together, up to this many elements: a larger batch saves no
#: time, and its temporary tensors (three of this size) cost memory.
BATCH_ELEMENTS = 2**24


class Adafactor(torch.optim.Optimizer):
    """AdaFactor (Shazeer and Stern, arXiv 1804.04235), equal to torch_optimizer 0.3.0's for
    parameters of up to two dimensions, and correct for more.

    All dimensions but the last two are a batch: each matrix (each expert) has its own factors,
    RMS, parameter scale and clipping. A parameter's attribute ``adafactor_batch_dims`` (int)
    overrides their number, e.g. 1 for the stacked biases [E, H] of E experts. A flat partition
    tagged by :func:`tag_partition` is updated as the parameters in it, to the same result at any
    number of processes; all ranks of its process group must call :meth:`step` together, and a
    tagged partition without a gradient counts as one of zeros. For 16-bit
    parameters the arithmetic and the statistics are in fp32.

    Arguments (defaults are torch_optimizer's):
        params: parameters, or dicts of parameter groups.
        lr: external step size; ignored if ``relative_step`` is true, required if not.
        eps2: added to the squared gradient; least parameter scale.
        clip_threshold: RMS above which a unit's update is scaled down.
        decay_rate: beta2 at step t is 1 - t**decay_rate.
        beta1: decay of a first moment, as large as the parameters; None for none.
        weight_decay: decoupled, times the unit's learning rate.
        scale_parameter: multiply the step size by the unit's RMS, at least ``eps2[1]``.
        relative_step: step size min(1e-2, 1/sqrt(t)) in place of ``lr``.
        warmup_init: with ``relative_step``, 1e-6 * t in place of 1e-2.
        mode: ``sharded``, or ``artifact`` to treat every tagged partition as one vector, as the
            paper's runs did: not factored, and dependent on the number of processes.

    Raises ValueError for arguments that cannot be used, RuntimeError for sparse gradients.
    """

    def __init__(
        self,
        params: Any,
        lr: float | None = None,
        eps2: Sequence[float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = True,
        relative_step: bool = True,
        warmup_init: bool = False,
        mode: str = "sharded",
    ) -> None:
        defaults = {
            "lr": lr,
            "eps2": tuple(eps2),
            "clip_threshold": clip_threshold,
            "decay_rate": decay_rate,
            "beta1": beta1,
            "weight_decay": weight_decay,
            "scale_parameter": scale_parameter,
            "relative_step": relative_step,
            "warmup_init": warmup_init,
            "mode": mode,
        }
        _check(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its options are checked like the constructor's."""
        _check({**self.defaults, **{k: v for k, v in param_group.items() if k != "params"}})
        super().add_param_group(param_group)

    def init_state(self) -> None:
        """Make the state of every parameter that has none: zeros, no step, weights untouched.

        Without this call the first step makes it. Use it instead of a step with zero gradients,
        which would be counted and would decay the weights.
        """
        for group in self.param_groups:
            for param in group["params"]:
                self._state_of(param, group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        sums = PackedSums()
        whole: dict[tuple[Any, ...], list[Block]] = {}
        copies: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            for param in group["params"]:
                tag = _tag(param, group)
                if param.numel() == 0 or (param.grad is None and tag is None):
                    continue
                grad = torch.zeros_like(param) if param.grad is None else param.grad
                if grad.is_sparse:
                    raise RuntimeError("Adafactor does not support sparse gradients")
                state = self._state_of(param, group)
                state["step"] += 1
                s = settings(group, state["step"])
                if tag is not None:
                    blocks, updates = self._shards(param, grad.contiguous(), state, tag, s)
                    sums.add(tag, working_dtype(param), param.device, updates)
                else:
                    target = param.contiguous()
                    if target is not param:
                        copies.append((param, target))
                    blocks = [whole_block(target, grad, state, whole_geometry(param))]
                for block in blocks:
                    cube = (block.param.shape[1:], block.param.dtype, block.grad.dtype)
                    key = (s, working_dtype(param), cube, param.device)
                    whole.setdefault(key, []).append(block)
        sums.start()
        for key, blocks in whole.items():
            for batch in _batches(blocks):
                update_blocks(batch, key[0], key[1])
        sums.finish()
        for param, target in copies:
            param.copy_(target)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but the fp32 statistics of 16-bit parameters stay fp32."""
        super().load_state_dict(state_dict)
        ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for index, param in zip(ids, params):
            if index in state_dict["state"] and param.dtype != working_dtype(param):
                self.state[param] = _copied(state_dict["state"][index], param)

    def _shards(
        self, param: Tensor, grad: Tensor, state: dict[str, Any], tag: PartitionTag, s: Settings
    ) -> tuple[list[Block], list[CutUpdate]]:
        """The whole units, and the parts of cut units, of a tagged partition."""
        if not getattr(grad, STAYS_ATTRIBUTE, False):
            views = shard_views(param, grad, state, tag)
            return views.blocks, cut_updates(views, s)
        kept: dict[Tensor, ShardViews] = self.__dict__.setdefault("_views", {})
        if not still_views(kept.get(param), param, grad, state, tag):
            held = {id(p) for group in self.param_groups for p in group["params"]}
            for gone in [p for p in kept if id(p) not in held]:
                del kept[gone]
            kept[param] = shard_views(param, grad, state, tag)
        return kept[param].blocks, cut_updates(kept[param], s)

    def _state_of(self, param: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        state = self.state[param]
        if not state:
            state.update(new_state(param, _tag(param, group), group["beta1"] is not None))
        return state


def _tag(param: Tensor, group: dict[str, Any]) -> PartitionTag | None:
    tag = getattr(param, TAG_ATTRIBUTE, None)
    if tag is None or group["mode"] == "artifact":
        return None
    if param.dim() != 1 or param.numel() != tag.partition_size:
        raise ValueError(
            f"a tagged partition has shape {tuple(param.shape)}, expected "
            f"({tag.partition_size},): tag it again after changing it"
        )
    return tag


def _batches(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    batch: list[Block] = []
    numel = 0
    for block in blocks:
        if batch and numel + block.param.numel() > BATCH_ELEMENTS:
            yield batch
            batch, numel = [], 0
        batch.append(block)
        numel += block.param.numel()
    yield batch


def _copied(value: Any, param: Tensor) -> Any:
    if isinstance(value, dict):
        return {key: _copied(inner, param) for key, inner in value.items()}
    if torch.is_tensor(value):
        return value.to(device=param.device, dtype=working_dtype(param), copy=True)
    return value


def _check(group: dict[str, Any]) -> None:
    lr, beta1, eps2 = group["lr"], group["beta1"], group["eps2"]
    rules = (
        ("lr", lr is None or lr > 0.0, "None or more than 0"),
        ("lr", lr is not None or group["relative_step"], "a number when relative_step is false"),
        ("eps2", len(eps2) == 2 and min(eps2) >= 0.0, "two numbers of at least 0"),
        ("clip_threshold", group["clip_threshold"] > 0.0, "more than 0"),
        ("decay_rate", group["decay_rate"] <= 0.0, "at most 0"),
        ("beta1", beta1 is None or 0.0 <= beta1 < 1.0, "None or 0 <= beta1 < 1"),
        ("weight_decay", group["weight_decay"] >= 0.0, "at least 0"),
        ("mode", group["mode"] in MODES, " or ".join(MODES)),
    )
    for name, holds, expected in rules:
        if not holds:
            raise ValueError(f"Adafactor: {name} is {group[name]!r}, expected {expected}")
