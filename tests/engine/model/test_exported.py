"""An exported model is the model: its logits after the round trip, for every way to train it."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.moe.lm import MoELM, MoELMConfig, export
from deepspeed.moe.lm import exported as exported_module
from deepspeed.utils.any_weights import any_whole_weights
from deepspeed.utils.checkpoint_io import write_whole
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.ranks import run_ranks
from support.scenarios import MODEL

pytest.importorskip("safetensors")
pytestmark = pytest.mark.usefixtures("one_process")

GRID = {
    "stage": st.sampled_from([0, 1, 2]),
    "precision": st.sampled_from(["fp32", "bf16", "fp16"]),
    "expert_parallel": st.sampled_from([1, 2]),
}


def trained(folder: str, **scenario: Any) -> torch.Tensor:
    """Train on two processes and save; the logits [B, S, V] of the engine's own model."""
    return run_ranks(2, "save_with_logits", scenario, folder)[0]


def logits_of(folder: Path) -> torch.Tensor:
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        return MoELM.from_exported(folder)(tokens).float()


def exported(source: str, precision: str) -> Path:
    to = Path(source) / "exported"
    export(MoELM, Path(source) / "last", to, MoELMConfig(**MODEL), precision, {})
    return to


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@example(stage=0, precision="bf16", expert_parallel=2)
@example(stage=1, precision="fp16", expert_parallel=1)
@example(stage=2, precision="fp32", expert_parallel=2)
@given(**GRID)
def test_logits_are_the_engines(stage: int, precision: str, expert_parallel: int) -> None:
    """To 1e-5 (fp32) or one step of the precision: a batch is cut otherwise on two processes."""
    with tempfile.TemporaryDirectory() as folder:
        scenario = {"stage": stage, "precision": precision, "expert_parallel": expert_parallel}
        expected = trained(folder, **scenario)
        found = logits_of(exported(folder, precision))
    apart = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 2e-3}[precision]
    assert torch.allclose(found, expected, rtol=apart, atol=apart), (found - expected).abs().max()


def test_a_dropped_expert_is_seen(tmp_path: Path) -> None:
    """Of experts that are left out, or zero, the first is refused and the second changes logits."""
    from safetensors.torch import load, save

    expected = trained(str(tmp_path), stage=2, expert_parallel=2)
    to = exported(str(tmp_path), "fp32")
    place = to / "model.safetensors"
    weights = load(place.read_bytes())
    names = [name for name in weights if ".experts." in name]
    assert names
    fewer = {n: v[:-1] if n in names else v for n, v in weights.items()}
    place.write_bytes(save({n: v.contiguous() for n, v in fewer.items()}))
    with pytest.raises(ValueError, match="not of this model"):
        logits_of(to)
    for name in names:
        weights[name][-1] = 0
    place.write_bytes(save(weights))
    assert not torch.allclose(logits_of(to), expected, rtol=1e-3, atol=1e-3)


def test_a_missing_expert_file_is_refused(tmp_path: Path) -> None:
    trained(str(tmp_path), stage=0, expert_parallel=2)
    [place] = (tmp_path / "last").glob("*expert_3_*model_states.pt")
    place.unlink()
    with pytest.raises(ValueError, match="is missing, expected it as manifest"):
        any_whole_weights(tmp_path / "last")
    (tmp_path / "last" / "manifest.sha256").unlink()  # as of an earlier version
    assert any_whole_weights(tmp_path / "last")  # they are there, and too few
    with pytest.raises(ValueError, match="not of this model"):
        exported(str(tmp_path), "fp32")


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json"):
        MoELM.from_exported(tmp_path)
    (tmp_path / "config.json").write_text('{"architecture": "GPT2"}')
    with pytest.raises(ValueError, match="another model"):
        MoELM.from_exported(tmp_path)


@pytest.mark.parametrize("moment", range(1, 9))
def test_an_export_over_an_older_one_is_never_mixed(
    moment: int, one_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended before each of its seven renames: the old model, or a folder that is refused."""
    sizes = {"hidden_size": 16, "num_layers": 2, "num_experts": 1, "num_heads": 2, "vocab_size": 7}
    config = MoELMConfig(**sizes, sequence_length=8)

    def export_weights(of: float) -> None:
        weights = {n: torch.full_like(v, of) for n, v in MoELM(config).state_dict().items()}
        monkeypatch.setattr(exported_module, "checkpoint_weights", lambda *_: weights)
        beside = {"tokenizer.json": str(of).encode()}
        export(MoELM, "none", tmp_path, config, "fp32", {"iterations": of}, beside)

    def found() -> set[float]:
        values = exported_module.read_config(tmp_path)
        weight = MoELM.from_exported(tmp_path).embedding.weight.max().item()
        return {values["iterations"], weight, float((tmp_path / "tokenizer.json").read_text())}

    export_weights(1.0)
    renames, rename = iter(range(1, 99)), Path.replace

    def replace(path: Path, to: Path) -> None:
        if next(renames) == moment:
            raise InterruptedError
        rename(path, to)

    with monkeypatch.context() as patched, contextlib.suppress(InterruptedError):
        patched.setattr(Path, "replace", replace)
        export_weights(2.0)
    if moment in (5, 6, 7):
        with pytest.raises(ValueError, match=r"config\.json: .* was broken off; repeat it"):
            found()
    else:
        assert found() == {1.0 if moment < 5 else 2.0}
    export_weights(3.0)
    assert found() == {3.0} and len(list(tmp_path.iterdir())) == 3


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_whole(tmp_path / "file", "no bytes")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
