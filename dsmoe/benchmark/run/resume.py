"""Which cases of a results folder are finished, so that a second start may skip them."""

from __future__ import annotations

from pathlib import Path

from dsmoe.benchmark.cases.case import Case, complete
from dsmoe.benchmark.data.corpus import CorpusInfo
from dsmoe.benchmark.results.record import RunRecord
from dsmoe.benchmark.results.store import RECORDS, read_records
from dsmoe.benchmark.run.patched_deepspeed import Trees


def finished(
    folder: Path, case: Case, device: str, trees: Trees, content: CorpusInfo
) -> RunRecord | None:
    """The last good record of the same run in ``folder``, or None.

    The same run: the same case in every setting, on the same kind of device, by a DeepSpeed of
    the same tree ids, on text of the same content and tokenizer. A failed run is none. Raises
    ResultsError for a broken record file.
    """
    path = folder / RECORDS
    if not path.is_file():
        return None
    same = [
        record
        for record in read_records(path)
        if record.status == "ok"
        and record.device == device
        and complete(record.case) == case.to_dict()
        and record.result_tree == trees.result
        and record.data.get("content") == content.content
        and record.data.get("tokenizer") == content.tokenizer
    ]
    return same[-1] if same else None
