"""The settings of one call: options of ``dsmoe run``, one combination after another."""

from __future__ import annotations

import itertools
import math
import shlex
from dataclasses import dataclass
from typing import Mapping, Sequence

from dsmoe.benchmark.cases.case import PAPER_SUITES, Case
from dsmoe.common.errors import UsageError


@dataclass(frozen=True)
class Setting:
    """``words`` are options of ``dsmoe run``; ``case`` is what they make of the suite's case."""

    words: tuple[str, ...]
    case: Case

    @property
    def name(self) -> str:
        """The options as they are typed."""
        return shlex.join(self.words) or "as the case has it"


def combinations(
    options: Mapping[str, Sequence[str]], repeated: Sequence[str]
) -> list[tuple[str, ...]]:
    """All combinations of the values of ``options``, for each of ``repeated``, texts of options.

    ``options``: option -> its values; one without a value stands alone. What is ``repeated``
    (``zero-stage=1 no-remat``) goes last, so that it wins where both have an option. Raises
    UsageError.
    """
    axes = [
        [(name, value) for value in values] if values else [(name,)]
        for name, values in options.items()
    ]
    plain = [tuple(itertools.chain(*chosen)) for chosen in itertools.product(*axes)]
    return [(*words, *_option_words(more)) for more in repeated or [""] for words in plain]


def _option_words(text: str) -> list[str]:
    """The options that a text without dashes stands for."""
    words = []
    try:
        given = shlex.split(text)
    except ValueError as error:
        raise UsageError(
            f"--setting {text[:60]!r}: {error}; expected options without dashes, such as "
            "'zero-stage=1 no-remat'"
        ) from error
    for word in given:
        name, equals, value = word.lstrip("-").partition("=")
        words += [f"--{name}", *([value] if equals else [])]
    return words


def common_batch(case: Case, changes: Sequence[Mapping[str, int | None]]) -> int:
    """Sequences of an iteration that all settings can have: the losses are compared.

    The case's own number, or the least multiple of it that every setting's ``micro_batches`` and
    ``micro_batch_size`` divide. The cases of the paper keep theirs.
    """
    if case.suite in PAPER_SUITES:
        return case.global_batch_size
    size = case.global_batch_size
    for each in changes:
        counted, sized = each.get("micro_batches"), each.get("micro_batch_size")
        count = counted or (1 if sized else case.micro_batches)
        size = math.lcm(size, case.parallel.processes * count * (sized or 1))
    return size
