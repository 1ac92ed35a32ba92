"""Kernels compiled ahead of a run, without a GPU, are all that a run then takes from the caches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from deepspeed.moe.kernels import ahead, policy
from support import ROOT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or policy.kernels().libraries().hopper is None,
        reason="needs a Hopper GPU and quack-kernels",
    ),
]


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_a_run_compiles_nothing_more(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches = [tmp_path / "quack", tmp_path / "flash"]
    for name, cache in zip(("QUACK_CACHE_DIR", "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"), caches):
        monkeypatch.setenv(name, str(cache))
    worker = ahead.start(precision, head_size=48, packed=precision == "bf16")
    assert worker is not None and worker.wait() == 0
    assert ahead.start(precision, head_size=48, packed=precision == "bf16") is None

    def compiled() -> set[Path]:
        return {path for cache in caches for path in cache.rglob("*.o")}

    before = compiled()
    assert len(before) >= 6
    # Triton's default, and where Inductor lets it write
    monkeypatch.setenv("TRITON_HOME", str(tmp_path / "triton"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    run = [sys.executable, "-m", "dsmoe", "run", "1", "--suite", "tuned", "--precision", precision]
    run += ["--steps", "1", "--micro-batches", "32", "--output", str(tmp_path / "out")]
    subprocess.run(run, check=True, cwd=ROOT)
    assert compiled() == before
    cubins = set(tmp_path.rglob("*.cubin"))
    assert cubins
    subprocess.run(run, check=True, cwd=ROOT)
    assert set(tmp_path.rglob("*.cubin")) == cubins
