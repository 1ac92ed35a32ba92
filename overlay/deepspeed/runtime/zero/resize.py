"""Load the state of ZeRO-1/2 at any number of processes and any expert parallel size.

A file of a checkpoint holds one process's partition of every parameter group. The partitions of a
group, one after the other, are its parameters in a flat order; what follows the last parameter is
padding. Here they are joined, cut into parameters by the names and shapes that every file holds,
and laid out again for the processes that load: the order differs where ``round_robin_gradients``
is set, the padding with the number of processes. Of experts each saved expert parallel rank has
its own sequence; where the size differs, it is cut further, into single experts.

Words: ``saved`` is the list of all files' optimizer states, by the rank that wrote them.
"""

from __future__ import annotations

import re
from typing import Any, Callable

import torch
import torch.distributed as dist
from deepspeed.moe.checkpoint import STACKED
from deepspeed.ops.adafactor.zero import restore_sharded_state
from deepspeed.utils import groups
from deepspeed.utils.checkpoint_io import state_value
from torch import Tensor

from .resize_factors import for_these_experts

#: In an optimizer's state that was read from a file: names and shapes, a mapping for each group.
NAMES = "param_shapes"
_ONE_EXPERT = re.compile(r"(?<=\.deepspeed_moe\.experts\.deepspeed_experts\.)(\d+)(?=\.|$)")

Names = "dict[str, torch.Size]"


def own_padding(numel: int, alignment: int, partitions: int, rank: int) -> int:
    """Elements of padding in partition ``rank`` of a group of ``numel`` elements.

    The flat buffer ends at a multiple of ``alignment``, itself one of ``partitions``; padding can
    fill more than the last partition.
    """
    size = -(-numel // alignment) * alignment // partitions
    return size - min(max(numel - rank * size, 0), size)


def named_states(engine: Any, files: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The optimizer's states of all ``files``, with the names that are needed to load them."""
    if hasattr(engine.optimizer, "partition_gradients"):
        if "single_partition_of_fp32_groups" not in files[0]["optimizer_state_dict"]:
            stage = files[0]["optimizer_state_dict"].get("zero_stage")
            raise RuntimeError(
                f"the checkpoint's optimizer state is of ZeRO stage {stage} in another form,"
                " expected that of stages 1 and 2 as here: resume with the stage (and"
                " legacy_stage1) that saved it, or load with load_module_only=True"
            )
        engine.optimizer.names_here = engine._get_zero_param_shapes()
    return [{NAMES: file.get(NAMES), **file["optimizer_state_dict"]} for file in files]


def restore_masters(zero: Any, saved: list[dict[str, Any]]) -> None:
    """Copy the saved fp32 weights to ``zero``'s partitions.

    Raises RuntimeError as :class:`GroupLayout` does.
    """
    for i, partition in enumerate(zero.single_partition_of_fp32_groups):
        layout = GroupLayout(zero, i, saved)
        partition.data.copy_(layout.gather(lambda state, i=i: _masters(state, i)))


def restore_optimizer_state(zero: Any, saved: list[dict[str, Any]]) -> None:
    """Give ``zero``'s optimizer the saved state of its partitions.

    Raises RuntimeError as :class:`GroupLayout` does, and where another optimizer saved it.
    """
    for i, group in enumerate(zero.optimizer.param_groups):
        layout = GroupLayout(zero, i, saved)
        states = [saved[r]["base_optimizer_state"][i] for r in layout.ranks]
        if layout.other_experts:
            states = for_these_experts(zero, i, layout, states)
        if restore_sharded_state(zero, i, states):
            continue
        parameter = group["params"][0]
        here = zero.optimizer.state[parameter]
        for key in set(here) - set(states[0]):
            del here[key]
        for key in states[0]:
            value = _state_entry(layout, i, key)
            if torch.is_tensor(here.get(key)):
                here[key].data.copy_(value)
            else:
                here[key] = state_value(value, parameter, group)


def _masters(state: dict[str, Any], i: int) -> Tensor:
    return state["single_partition_of_fp32_groups"][i]


def _state_entry(layout: GroupLayout, i: int, key: str) -> Any:
    """One entry of the optimizer's state: laid out anew if it is as long as the partition."""
    states = [layout.saved[r] for r in layout.ranks]
    values = [state["base_optimizer_state"][i].get(key) for state in states]
    lengths = [_masters(state, i).numel() for state in states]
    if all(torch.is_tensor(v) and v.dim() and v.numel() == n for v, n in zip(values, lengths)):
        return layout.gather(lambda state: state["base_optimizer_state"][i][key].view(-1))
    if torch.is_tensor(values[0]) and values[0].dim() and len(values) > 1:
        found = [tuple(v.shape) if torch.is_tensor(v) else v for v in values]
        raise RuntimeError(
            f"the optimizer's state {key!r} of group {i} was saved with the shapes {found};"
            f" expected the partitions' lengths {lengths}, the only ones that can be laid out"
            " anew: pass load_optimizer_states=False"
        )
    return values[0]


class GroupLayout:
    """Where the elements of parameter group ``i`` of ``zero`` are in the files that were ``saved``.

    ``ranks`` are the files that hold parts of it, ``other_experts`` says whether experts were
    saved at another expert parallel size, and ``size_there`` is that size (1 for dense groups).

    Raises:
        RuntimeError: naming both sides, where the groups, parameters, shapes or experts differ.
    """

    def __init__(self, zero: Any, i: int, saved: list[dict[str, Any]]) -> None:
        self.zero, self.i, self.saved = zero, i, saved
        counts = saved[0]["partition_count"]
        here = zero.partition_count
        if len(counts) != len(here):
            raise RuntimeError(
                f"the checkpoint's optimizer state has {len(counts)} parameter groups, expected"
                f" {len(here)} as here: make the same groups, or load with load_module_only=True"
            )
        moe = bool(zero.optimizer.param_groups[i].get("moe"))
        self.size_here = groups.get_expert_parallel_world_size() if moe else 1
        self.rank_here = groups.get_expert_parallel_rank() if moe else 0
        self.size_there = len(saved) // counts[i]
        self.other_experts = self.size_there != self.size_here
        names = getattr(zero, "names_here", None)
        self.names_here = None if names is None else names[i]
        if self.other_experts and (self.names_here is None or not saved[0].get(NAMES)):
            raise RuntimeError(
                f"the checkpoint's optimizer state was saved with expert parallel size "
                f"{self.size_there} and without the parameters' names; expected {self.size_here}:"
                f" resume with {self.size_there}, or load with load_module_only=True"
            )
        wanted = self.places(self.names_here, self.rank_here) if self.names_here else None
        self.sequences = self._sequences(wanted)
        self.ranks = [r for ranks in self.sequences.values() for r in ranks]
        if wanted is not None and saved[0].get(NAMES):
            self._check(wanted)

    def _sequences(self, wanted: Any) -> dict[int, list[int]]:
        """For each saved expert parallel rank that holds something wanted, its files' ranks."""
        result = {}
        for there in range(self.size_there):
            ranks = list(range(there, len(self.saved), self.size_there))
            if not self.other_experts:
                if there == self.rank_here:
                    result[there] = ranks
            elif {p[0] for p in self.places(self.names_there(there), there)} & {
                p[0] for p in wanted
            }:
                result[there] = ranks
        return result

    def names_there(self, there: int) -> Any:
        """Names and shapes of what expert parallel rank ``there`` saved, in its flat order."""
        names = self.saved[there].get(NAMES)
        return names[self.i] if names else self.names_here

    def places(self, names: Any, rank: int) -> list[tuple[Any, int, str]]:
        """(key, elements, name) of all parts in the flat order of expert parallel ``rank``.

        The key of a part is the same on both sides: the parameter's name, or, where experts must
        be told apart, the name without the expert's number and that number in the whole model.
        """
        if not self.other_experts:
            return [((name, tuple(shape)), shape.numel(), name) for name, shape in names.items()]
        local = _local_experts(names)
        result = []
        for name, shape in names.items():
            one = _ONE_EXPERT.search(name)
            if STACKED in name:
                part = (name, tuple(shape[1:]))
                each = shape.numel() // shape[0]
                result += [((*part, rank * shape[0] + k), each, name) for k in range(shape[0])]
            elif one:
                number = rank * local[name[: one.start()]] + int(one.group())
                key = (_ONE_EXPERT.sub("*", name), tuple(shape), number)
                result.append((key, shape.numel(), name))
            else:
                raise RuntimeError(
                    f"parameter {name} was saved with expert parallel size {self.size_there},"
                    f" expected {self.size_here}: only DeepSpeed's experts and stacked ones can be"
                    f" told apart; resume with {self.size_there}, or load with"
                    " load_module_only=True"
                )
        return result

    def _check(self, wanted: list[tuple[Any, int, str]]) -> None:
        there = {p[0] for j in self.sequences for p in self.places(self.names_there(j), j)}
        here = {p[0] for p in wanted}
        missing = sorted(here - there, key=str)
        surplus = sorted(there - here, key=str) if not self.other_experts else []
        if missing or surplus:
            raise RuntimeError(
                f"group {self.i} of the checkpoint's optimizer state lacks"
                f" {[_shown(k) for k in missing[:2]] or 'nothing'} and has"
                f" {[_shown(k) for k in surplus[:2]] or 'nothing'} in its place ({len(missing)} and"
                f" {len(surplus)} parts), expected the parameters of group {self.i} here: make the"
                " same model and groups, or load with load_module_only=True"
            )

    def gather(self, part_of: Callable[[dict[str, Any]], Tensor]) -> Tensor:
        """This process's partition, 1-D, of what ``part_of(state)`` is of each file's state."""
        flats = {
            there: torch.cat([part_of(self.saved[r]).view(-1) for r in ranks])
            for there, ranks in self.sequences.items()
        }
        partition = self.zero.single_partition_of_fp32_groups[self.i]
        low = partition.numel() * dist.get_rank(group=self.zero.real_dp_process_group[self.i])
        flat = self._in_this_order(flats)[low:][: partition.numel()]
        return torch.cat([flat, flat.new_zeros(partition.numel() - flat.numel())])

    def _in_this_order(self, flats: dict[int, Tensor]) -> Tensor:
        """All elements of the group as this expert parallel rank has them, without padding."""
        if self.names_here is None:
            (flat,) = flats.values()
            return flat[: sum(p.numel() for p in _parameters(self.zero)[self.i])]
        wanted = self.places(self.names_here, self.rank_here)
        parts: dict[Any, Tensor] = {}
        for there, flat in flats.items():
            places = self.places(self.names_there(there), there)
            total = sum(numel for _, numel, _ in places)
            if flat.numel() < total:
                raise RuntimeError(
                    f"the files of group {self.i} hold {flat.numel()} elements, expected {total}:"
                    " they are of different checkpoints, load another one"
                )
            if places == wanted:
                return flat[:total]
            pieces = flat[:total].split([numel for _, numel, _ in places])
            parts.update((key, piece) for (key, _, _), piece in zip(places, pieces))
        return torch.cat([parts[key] for key, _, _ in wanted])


def _local_experts(names: Any) -> dict[str, int]:
    """For each layer of DeepSpeed's own experts, by the name in front, how many it has here."""
    result: dict[str, int] = {}
    for name in names:
        one = _ONE_EXPERT.search(name)
        if one:
            front = name[: one.start()]
            result[front] = max(result.get(front, 0), int(one.group()) + 1)
    return result


def _parameters(zero: Any) -> Any:
    """The groups' parameters, by either base's name."""
    return zero.bit16_groups if hasattr(zero, "bit16_groups") else zero.fp16_groups


def _shown(key: tuple[Any, ...]) -> str:
    name, shape, *number = key
    return f"{name} {list(shape)}" + (f" of expert {number[0]}" if number else "")
