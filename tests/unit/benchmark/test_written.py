"""What ends a continuation of a text is one line with a code of its own."""

from __future__ import annotations

import sys
import types
from typing import Any, Iterator

import pytest

from dsmoe.benchmark.data.tokenizer import load_tokenizer
from dsmoe.common.errors import DataError, ResultsError, UsageError
from dsmoe.model.opened import Opened
from dsmoe.model.written import Choice, write


@pytest.mark.parametrize(
    ("raised", "prompt", "expected"),
    [
        (ValueError("top_k is 400"), "a", (UsageError, "top_k is 400")),
        (FloatingPointError("no numbers"), "a", (ResultsError, "this model: no numbers")),
        (None, "z", (DataError, "bytes: token id 122 is outside")),
        (None, "", (UsageError, "is empty")),
    ],
)
def test_what_ends_it(
    raised: Exception | None,
    prompt: str,
    expected: tuple[type[Exception], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stream(*_: Any) -> Iterator[int]:
        assert raised, "nothing is computed"
        raise raised
        yield

    module = types.ModuleType("deepspeed.moe.lm")
    module.stream = stream  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deepspeed.moe.lm", module)
    model = types.SimpleNamespace(config=types.SimpleNamespace(vocab_size=100))
    opened = Opened(model, load_tokenizer(), None, "cpu", "this model")
    with pytest.raises(expected[0], match=expected[1]):
        write(opened, prompt, 1, Choice(0.0, None, None, 0, True), print)
