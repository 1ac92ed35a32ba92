#!/usr/bin/env python3
"""Write the fp32 weights of a ZeRO checkpoint, all in one file that torch.load reads.

    python zero_to_fp32.py CHECKPOINT_FOLDER OUTPUT_FILE [--tag TAG] [--no-verify]

CHECKPOINT_FOLDER is the one that holds ``latest`` and a folder for each tag. This file is copied
into it and needs torch (1.10 or later) and nothing else. The result is the ``state_dict`` of the
model in one process: experts of all expert parallel ranks, tied weights under each of their names,
buffers, and parameters that are not trained. No code in the checkpoint's pickles is run: a class
that is no tensor or container is read as an empty object. Files are compared with manifest.sha256
first, which the engine writes last; ``sha256sum --check manifest.sha256`` does the same.

The partitions of a parameter group, rank after rank, are its parameters one after the other, in
the order of ``param_shapes``, then padding. A group with fewer partitions than there are files is
of experts: at expert parallel size E rank r holds a partition of the experts of rank r modulo E.
"""

import argparse
import hashlib
import inspect
import pickle
import re
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

ZERO_FILE = re.compile(r"zero_pp_rank_(\d+)_mp_rank_(\d+)_?optim_states\.pt")
EXPERT_FILE = re.compile(r"expert_(\d+)_mp_rank_00_model_states\.pt")
ONE_EXPERT = re.compile(r"(?<=\.deepspeed_moe\.experts\.deepspeed_experts\.)(\d+)(?=\.)")
STACKED = ".deepspeed_moe.experts.stacked."
MANIFEST = "manifest.sha256"
# Folders beside those of the tags: one that is being written, one that a later save replaces.
SAVING, FORMER = ".saving-", ".former"
# What a pickle may name; all else becomes an object that does nothing.
ALLOWED = {
    "collections": {"OrderedDict", "defaultdict", "deque"},
    "builtins": {"set", "frozenset", "slice", "complex", "bytearray", "dict", "list", "int"},
    "torch": {"Size", "device"},
    "torch._utils": {
        "_rebuild_tensor",
        "_rebuild_tensor_v2",
        "_rebuild_parameter",
        "_rebuild_parameter_with_state",
    },
    "torch.serialization": {"_get_layout"},
}


class _Ignored:
    """Stands for an object of a class that this script does not need."""

    def __new__(cls, *args, **kwargs):
        return object.__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass

    def __call__(self, *args, **kwargs):
        return self

    def __setitem__(self, key, value):
        pass

    append = extend = add = __setstate__


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        storage = module in ("torch", "torch.storage") and name.endswith("Storage")
        if dtype or storage or name in ALLOWED.get(module, ()):
            return super().find_class(module, name)
        return _Ignored


def _load(path):
    module = types.SimpleNamespace(
        __name__="pickle", Unpickler=_Unpickler, load=lambda f, **k: _Unpickler(f, **k).load()
    )
    options = {"pickle_module": module, "map_location": "cpu"}
    if "weights_only" in inspect.signature(torch.load).parameters:
        options["weights_only"] = False
    try:
        return torch.load(str(path), **options)
    except (EOFError, OSError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{path} cannot be read ({reason}): it is cut short or damaged") from None


def digest(path):
    """The SHA-256 of a file, in hexadecimal digits."""
    result = hashlib.sha256()
    with Path(path).open("rb") as file:
        for part in iter(lambda: file.read(1 << 22), b""):
            result.update(part)
    return result.hexdigest()


def read_manifest(folder):
    """name: SHA-256 of the files in ``folder``, that of one tag; None where it has no manifest.

    Raises ValueError where the manifest itself is cut short or damaged: its last line is the
    SHA-256 of those above.
    """
    try:
        lines = (Path(folder) / MANIFEST).read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return None
    last = b"# " + hashlib.sha256(b"".join(lines[:-1])).hexdigest().encode() + b"\n"
    if len(lines) < 2 or lines[-1] != last:
        raise ValueError(f"{Path(folder) / MANIFEST} is cut short or damaged")
    entries = (line.decode().rstrip("\n").split("  ", 1) for line in lines[1:-1])
    return {name: sha for sha, name in entries}


def fault(folder, name, listed):
    """What is wrong with the file ``name`` of ``folder``; None if it is as ``listed`` says."""
    path = Path(folder) / name
    if not path.is_file():
        return f"{path} is missing, expected it as {MANIFEST} lists it"
    found = digest(path)
    if found == listed[name]:
        return None
    others = [other for other, sha in listed.items() if sha == found]
    kind = f"holds {others[0]}" if others else "is cut short or damaged"
    return f"{path} {kind} (SHA-256 {found[:12]}..., expected {listed[name][:12]}...)"


def advice(folder):
    """What to do with a damaged checkpoint in ``folder``: which tag was saved before it."""
    folder = Path(folder)
    limit = _saved(folder) or "~"
    times = {p.name: _saved(p) for p in folder.parent.iterdir() if SAVING not in p.name}
    before = [(t, n) for n, t in times.items() if t and t < limit and _is_there(folder.parent / n)]
    return f"copy it anew, or load {f'the tag {max(before)[1]!r}' if before else 'another tag'}"


def _saved(folder):
    """When the checkpoint in ``folder`` was saved, as text that sorts; "" where it is not known."""
    try:
        head = (folder / MANIFEST).read_bytes().splitlines()[:1]
    except OSError:
        return ""
    return b"".join(head).partition(b" saved ")[2].decode(errors="replace")


def _is_there(folder):
    try:
        return all((folder / name).is_file() for name in read_manifest(folder))
    except ValueError:
        return False


def tag_folder(folder, tag):
    """The folder of ``tag``; the former one where saving anew was killed as the two changed."""
    place, former = Path(folder) / tag, Path(folder) / (tag + FORMER)
    return former if former.is_dir() and not place.exists() else place


def check_manifest(folder):
    listed = read_manifest(folder)
    if listed is None:
        print(f"{folder} has no {MANIFEST} (an earlier version saved it): no file is verified")
    for name in listed or {}:
        found = None if name.startswith("expp_rank_") else fault(folder, name, listed)
        if found:
            raise ValueError(f"{found}: {advice(folder)}")


def _zero_files(folder):
    """The ranks' files in the order of ranks, not of names."""
    found = {}
    for path in folder.iterdir():
        match = ZERO_FILE.fullmatch(path.name)
        if match and int(match.group(2)):
            raise ValueError(
                f"{path} is of a model parallel rank, expected rank 0 alone: this script does not"
                " join what model parallelism has split"
            )
        if match:
            found[int(match.group(1))] = path
    if not found:
        raise ValueError(
            f"{folder} holds no zero_pp_rank_*_optim_states.pt, expected one a process: a run"
            " without ZeRO has its weights in mp_rank_00_model_states.pt"
        )
    return found


def model_file(folder):
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"):
        if (folder / name).is_file():
            return _load(folder / name)
    raise ValueError(f"{folder} holds no mp_rank_00_model_states.pt, expected it beside the others")


def _numel(shape):
    return torch.Size(shape).numel()


def _cut(flat, shapes, place):
    """name: tensor of its shape, from the start of ``flat``."""
    total = sum(_numel(shape) for shape in shapes.values())
    if flat.numel() < total:
        raise ValueError(
            f"{place} holds {flat.numel()} elements, expected {total}: the files are of different"
            " checkpoints"
        )
    pieces = flat[:total].split([_numel(shape) for shape in shapes.values()])
    return {n: p.view(torch.Size(s)).clone() for (n, s), p in zip(shapes.items(), pieces)}


def _local_experts(names):
    """For each layer of numbered experts, by the name in front: how many a rank has."""
    result: dict[str, int] = {}
    for name in names:
        match = ONE_EXPERT.search(name)
        if match:
            front = name[: match.start()]
            result[front] = max(result.get(front, 0), int(match.group()) + 1)
    return result


def _stage_2_weights(states, shapes):
    """All trained parameters, from the optimizer states and names of all ranks."""
    weights = {}
    for i, partitions in enumerate(states[0]["partition_count"]):
        size = len(states) // partitions  # expert parallel size, 1 of a dense group
        parts = []
        for j in range(size):
            own = [s["single_partition_of_fp32_groups"][i].view(-1) for s in states[j::size]]
            parts.append(_cut(torch.cat(own), shapes[j][i], f"group {i} of expert rank {j}"))
        if size == 1:
            weights.update(parts[0])
            continue
        local = _local_experts(shapes[0][i])
        for name in parts[0]:
            match = ONE_EXPERT.search(name)
            if STACKED in name:
                weights[name] = torch.cat([part[name] for part in parts])
            elif match:
                for j, part in enumerate(parts):
                    number = j * local[name[: match.start()]] + int(match.group())
                    weights[ONE_EXPERT.sub(str(number), name)] = part[name]
            else:
                raise ValueError(f"{name} is a part of an expert of a kind that is not known here")
    return weights


def _stage_3_weights(states, shapes):
    """Every parameter is spread over all ranks, padded to a multiple of their number."""
    flats = [torch.cat([g.view(-1) for g in s["fp32_flat_groups"]]) for s in states]
    weights, offset = {}, 0
    for name, shape in (item for group in shapes[0] for item in group.items()):
        numel = _numel(shape)
        part = -(-numel // len(flats))
        whole = torch.cat([flat[offset : offset + part] for flat in flats])
        weights[name] = whole[:numel].view(torch.Size(shape)).clone()
        offset += part
    return weights


def _fp32(value):
    return value.float() if torch.is_tensor(value) and value.is_floating_point() else value


def _add_the_rest(weights, module):
    """Add tied names, buffers and what is not trained, from the model's own file."""
    masters = {}
    for name, value in module.items():
        if torch.is_tensor(value) and value.numel() and name in weights:
            masters[(value.data_ptr(), tuple(value.shape), value.stride())] = name
    for name, value in module.items():
        if name in weights or isinstance(value, _Ignored):
            continue
        place = torch.is_tensor(value) and (value.data_ptr(), tuple(value.shape), value.stride())
        weights[name] = weights[masters[place]] if place in masters else _fp32(value)


def add_experts_rest(weights, folder):
    """What of the experts is not trained, from the files of all experts."""
    files = {}
    for path in folder.iterdir():
        match = EXPERT_FILE.fullmatch(path.name)
        if match:
            files[int(match.group(1))] = path
    slices: dict[str, list[Any]] = {}
    for number in sorted(files):
        for name, value in _load(files[number]).items():
            if name not in weights and STACKED in name:
                slices.setdefault(name, []).append(_fp32(value))
            elif name not in weights:
                weights[name] = _fp32(value)
    weights.update((name, torch.stack(values)) for name, values in slices.items())


def whole_weights(folder, verify=True):
    """The fp32 state_dict of the checkpoint in ``folder``, that of one tag; on the CPU.

    Raises:
        ValueError: where files are missing, damaged or do not belong together.
    """
    folder = Path(folder)
    if verify:
        check_manifest(folder)
    found, model = _zero_files(folder), model_file(folder)
    processes = model.get("dp_world_size", len(found))
    if sorted(found) != list(range(processes)):
        missing = sorted(set(range(processes)) - set(found))[:5]
        raise ValueError(
            f"{folder} holds ZeRO's files of {len(found)} processes, expected those of ranks 0 to"
            f" {processes - 1}; {f'rank {missing} is missing' if missing else 'some are older'}:"
            " copy the whole folder, or take another tag"
        )
    states, shapes = [], []
    for rank in range(processes):
        file = _load(found[rank])
        states.append(file["optimizer_state_dict"])
        shapes.append(file["param_shapes"])
    stage = states[0].get("zero_stage")
    if stage == 3:
        buffers = {n: v for n, v in model["module"].items() if n in model["buffer_names"]}
        weights = _stage_3_weights(states, shapes)
        weights.update((n, _fp32(v)) for n, v in buffers.items())
        return OrderedDict(weights)
    if stage not in (1, 2) or not isinstance(states[0].get("partition_count"), list):
        raise ValueError(
            f"{folder} is of ZeRO stage {stage}, expected 1, 2 or 3, not legacy_stage1"
        )
    weights = _stage_2_weights(states, shapes)
    _add_the_rest(weights, model["module"])
    add_experts_rest(weights, folder)
    return OrderedDict(weights)


def get_fp32_state_dict_from_zero_checkpoint(checkpoint_dir, tag=None, verify=True):
    """The fp32 state_dict of ``tag`` (by default that in ``latest``) in ``checkpoint_dir``.

    Raises ValueError as :func:`whole_weights`, and where there is no such tag.
    """
    folder = Path(checkpoint_dir)
    tags = sorted(p.parent.name for p in folder.glob("*/*_optim_states.pt")) if not tag else []
    if tag is None:
        latest = folder / "latest"
        if not latest.is_file():
            raise ValueError(
                f"{folder} has no file latest, expected the folder that save_checkpoint was given;"
                f" name a tag of {sorted(set(tags))}"
            )
        tag = latest.read_text(errors="replace").strip()
    place = tag_folder(folder, tag)
    if not tag or not place.is_dir():
        raise ValueError(f"{folder} has no folder {tag}, expected the tag of a checkpoint")
    return whole_weights(place, verify)


def convert_zero_checkpoint_to_fp32_state_dict(checkpoint_dir, output_file, tag=None, verify=True):
    """Write that state_dict to ``output_file``, whole or not at all."""
    state = get_fp32_state_dict_from_zero_checkpoint(checkpoint_dir, tag, verify)
    beside = f"{output_file}.tmp"
    torch.save(state, beside)
    Path(beside).replace(output_file)
    elements = sum(v.numel() for v in state.values() if torch.is_tensor(v))
    print(f"{output_file}: {len(state)} tensors, {elements} elements")


def load_state_dict_from_zero_checkpoint(model, checkpoint_dir, tag=None):
    """``model`` on the CPU with the checkpoint's fp32 weights."""
    model = model.cpu()
    model.load_state_dict(get_fp32_state_dict_from_zero_checkpoint(checkpoint_dir, tag))
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint_dir", help="the folder that holds latest and the tags' folders")
    parser.add_argument("output_file", help="e.g. pytorch_model.bin")
    parser.add_argument("-t", "--tag", help="by default the one that latest names")
    parser.add_argument("--no-verify", action="store_true", help="do not compare with the manifest")
    parser.add_argument("-d", "--debug", action="store_true", help="show where an error arises")
    args = parser.parse_args()
    try:
        convert_zero_checkpoint_to_fp32_state_dict(
            args.checkpoint_dir, args.output_file, args.tag, not args.no_verify
        )
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        sys.exit(f"zero_to_fp32.py: {error}")


if __name__ == "__main__":
    main()
