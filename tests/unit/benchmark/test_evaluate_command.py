"""What ``dsmoe evaluate`` prints of what was measured."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from dsmoe.commands import evaluate
from dsmoe.common.output import ProcessEnd
from dsmoe.model import measured, opened


def test_a_perplexity_that_overflows_is_null_in_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = measured.Measured(800.0, math.inf, 1.0, 9, 1, 1, [[1.0]], "text")
    monkeypatch.setattr(opened, "open_model", lambda folder: None)
    monkeypatch.setattr(measured, "measure", lambda *_: found)

    def no_number(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    with pytest.raises(ProcessEnd) as end:
        evaluate.run(evaluate.make_parser("dsmoe evaluate").parse_args(["folder", "--json"]))
    said = json.loads(capsys.readouterr().out, parse_constant=no_number)
    assert end.value.code == 0 and said["loss"] == 800 and said["perplexity"] is None
