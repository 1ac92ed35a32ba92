"""``dsmoe evaluate`` with the model itself, in this process."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from deepspeed.moe.lm import MoELM, MoELMConfig

from dsmoe.benchmark.data.tokenizer import load_tokenizer
from dsmoe.common.errors import ResultsError
from dsmoe.model.measured import measure
from dsmoe.model.opened import Opened

CONFIG = MoELMConfig(
    hidden_size=16, num_layers=2, num_experts=2, num_heads=2, vocab_size=257, sequence_length=8
)


@pytest.mark.parametrize("weight", [None, math.nan])
def test_a_loss_that_is_not_finite_is_refused(
    one_process: None, weight: float | None, tmp_path: Path
) -> None:
    model = MoELM(CONFIG, seed=0)
    (tmp_path / "text").write_text("some words " * 9)
    opened = Opened(model, load_tokenizer(), None, "cpu", "this model")
    request = (opened, [str(tmp_path / "text")], tmp_path / "cache", 3)
    if weight is None:
        assert measure(*request).loss == pytest.approx(math.log(257), abs=0.5)
        return
    with torch.no_grad():
        model.embedding.weight.fill_(weight)
    with pytest.raises(ResultsError, match="this model: found a loss of nan; expected a finite"):
        measure(*request)
