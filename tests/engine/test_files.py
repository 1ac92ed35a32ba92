"""Files that are used without the engine: zero_to_fp32.py beside a checkpoint, save_fp16_model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from support.forked import run_forked
from support.ranks import run_ranks

MODEL = {"num_experts": 4, "vocab_size": 65, "ffn_multiplier": 3}
OWN = {**MODEL, "moe_implementation": "deepspeed", "second_expert_policy": "sampling"}
ROUND_ROBIN = {
    "zero_optimization": {"stage": 2, "round_robin_gradients": True, "overlap_comm": False}
}
CASES = {
    "dense": (3, {"model": {**MODEL, "num_experts": 1}, "precision": "bf16"}),
    "experts": (2, {"model": MODEL, "stage": 1, "optimizer": "Adafactor"}),
    "experts-spread": (2, {"model": MODEL, "expert_parallel": 2, "precision": "bf16"}),
    "four": (4, {"model": MODEL, "expert_parallel": 2, "flat": True, "optimizer": "AdamW"}),
    "own-layer": (2, {"model": OWN, "expert_parallel": 2, "config": ROUND_ROBIN}),
}


def run_script(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """zero_to_fp32.py of ``folder`` as a user starts it, where no DeepSpeed can be imported."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "zero_to_fp32.py", *(arguments or (".", "fp32.bin"))],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


def run_quickly(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """The same without its import of torch."""
    return run_forked(folder / "zero_to_fp32.py", *(arguments or (".", "fp32.bin")))


@pytest.fixture(scope="module", params=CASES)
def saved(request: Any, tmp_path_factory: Any) -> tuple[Path, list[dict], dict]:
    folder = tmp_path_factory.mktemp(request.param)
    processes, scenario = CASES[request.param]
    results = run_ranks(processes, "save_with_weights", scenario, str(folder))
    done = (run_script if request.param == "experts-spread" else run_quickly)(folder)
    assert done.returncode == 0, done.stderr
    return folder, results, scenario


def test_the_script_gives_the_whole_fp32_weights(saved: tuple) -> None:
    """Every parameter of all experts, equal to the fp32 masters bit by bit."""
    folder, results, scenario = saved
    found = torch.load(folder / "fp32.bin")
    expected = results[0]["weights"]
    assert expected.keys() <= found.keys()
    for name, weight in expected.items():
        assert found[name].dtype == torch.float32
        given = found[name].bfloat16().float() if scenario.get("precision") else found[name]
        assert torch.equal(given, weight), name
    masters = torch.cat([p for result in results for p in result["masters"]])
    if scenario.get("expert_parallel", 1) == 1 or len(results) == 2:
        both = torch.cat([found[name].flatten() for name in expected])
        assert torch.equal(both.sort().values, masters.sort().values)


def test_the_saved_model_is_whole(saved: tuple) -> None:
    """save_fp16_model writes every expert, and no more bytes than the weights have."""
    folder, results, _ = saved
    found = torch.load(folder / "model.bin")
    for name, weight in results[0]["weights"].items():
        assert torch.equal(found[name].float(), weight), name
    tensors = {v.data_ptr(): v for v in found.values() if torch.is_tensor(v)}
    size = sum(v.numel() * v.element_size() for v in tensors.values())
    assert (folder / "model.bin").stat().st_size < size + 1000 * (len(found) + 4)


def test_both_load_into_a_model_in_one_process(saved: tuple) -> None:
    folder, _, scenario = saved
    paths = [str(folder / name) for name in ("fp32.bin", "model.bin")]
    assert run_ranks(1, "loads_whole", {"model": scenario["model"]}, paths)[0] == [[], []]


def _write(folder: Path, ranks: int, stage: int) -> dict[str, torch.Tensor]:
    """A checkpoint of ``ranks`` processes made by hand, as DeepSpeed lays it out; its weights."""
    weights = OrderedDict(a=torch.randn(7, 5), b=torch.randn(11), c=torch.randn(3, 2, 2))
    (folder / "tag").mkdir()
    (folder / "latest").write_text("tag")
    shapes = [OrderedDict((name, value.shape) for name, value in weights.items())]
    if stage == 3:
        flat = torch.cat([_spread(value, ranks) for value in weights.values()], 1)
    else:
        flat = _spread(torch.cat([value.flatten() for value in weights.values()]), ranks)
    for rank in range(ranks):
        part = [flat[rank].clone()]
        state = {"zero_stage": stage, "partition_count": ranks if stage == 3 else [ranks]}
        state["loss_scaler"] = LossScaler(1.0)  # a class that the script must do without
        state["fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"] = part
        name = f"zero_pp_rank_{rank}_mp_rank_00"
        torch.save(
            {"optimizer_state_dict": state, "param_shapes": shapes},
            folder / "tag" / f"{name}_optim_states.pt",
        )
    module = {"n": torch.arange(3), "f": torch.ones(2).half()}
    model = {"module": module, "buffer_names": ["n", "f"], "dp_world_size": ranks}
    first = "zero_pp_rank_0_" if stage == 3 else ""
    torch.save(model, folder / "tag" / f"{first}mp_rank_00_model_states.pt")
    return {**weights, "n": module["n"], "f": module["f"].float()}


def _spread(value: torch.Tensor, ranks: int) -> torch.Tensor:
    each = -(-value.numel() // ranks)
    padded = torch.cat([value.flatten(), torch.zeros(each * ranks - value.numel())])
    return padded.view(ranks, each)


@pytest.fixture
def script(checkout: Path, tmp_path: Path) -> Path:
    source = checkout / "deepspeed" / "utils" / "fp32_weights.py"
    (tmp_path / "zero_to_fp32.py").write_bytes(source.read_bytes())
    return tmp_path


@pytest.mark.parametrize("stage", [2, 3])
def test_files_are_taken_by_rank_not_by_name(script: Path, stage: int) -> None:
    """Of twelve processes, rank 10 comes after rank 2; at stage 3 every parameter is spread."""
    expected = _write(script, 12, stage)
    run = run_quickly(script)
    assert run.returncode == 0, run.stderr
    found = torch.load(script / "fp32.bin")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


class Unsafe:
    def __reduce__(self):
        return (os.system, ("touch ran",))


def test_no_code_of_a_checkpoint_runs(script: Path) -> None:
    expected = _write(script, 2, 2)
    path = script / "tag" / "mp_rank_00_model_states.pt"
    torch.save({**torch.load(path, weights_only=False), "client": [Unsafe()]}, path)
    assert run_script(script).returncode == 0
    assert not (script / "ran").exists()
    assert torch.load(script / "fp32.bin").keys() == expected.keys()


def test_what_it_cannot_convert_is_one_line(script: Path) -> None:
    _write(script, 4, 2)

    def said(*arguments: str) -> str:
        run = run_quickly(script, *arguments)
        assert run.returncode == 1 and run.stderr.count("\n") == 1, run.stderr
        return run.stderr

    assert "has no folder other, expected the tag" in said(".", "x", "--tag", "other")
    (script / "latest").unlink()
    assert "has no file latest" in said() and "['tag']" in said()
    (script / "tag" / "zero_pp_rank_2_mp_rank_00_optim_states.pt").unlink()
    text = said(".", "x", "--tag", "tag")
    assert "of 3 processes, expected those of ranks 0 to 3; rank [2] is missing" in text
    for path in (script / "tag").glob("zero_*"):
        path.unlink()
    assert "holds no zero_pp_rank_*_optim_states.pt" in said(".", "x", "--tag", "tag")
    assert not (script / "x").exists()


def test_deepspeeds_own_functions_do_the_same(script: Path) -> None:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    expected = _write(script, 12, 2)
    found = get_fp32_state_dict_from_zero_checkpoint(str(script))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
