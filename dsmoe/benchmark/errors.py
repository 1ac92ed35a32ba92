"""Expected failures of the benchmark's data and results, apart from those in dsmoe.errors."""

from __future__ import annotations

from dsmoe.errors import DsmoeError


class DataError(DsmoeError):
    """Text, a tokenizer or a token pair is missing, broken or does not fit the model."""

    exit_code = 9


class ResultsError(DsmoeError):
    """A result file cannot be read or written, or a record is not valid."""

    exit_code = 10
