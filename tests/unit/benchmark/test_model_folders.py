"""A folder of a model that somebody changed is refused in one line, before it is built."""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from support.commands import dsmoe

from dsmoe.benchmark.cases.suites import SUITES
from dsmoe.commands import export
from dsmoe.common.arguments import utf8_text
from dsmoe.common.errors import ResultsError
from dsmoe.common.output import ProcessEnd
from dsmoe.model import opened
from dsmoe.model.checked import check_size, read_exported, reading
from dsmoe.model.checkpoint_folder import describe, read_kept, step_of, tokenizer_to_go_on
from dsmoe.model.opened import names_of_others

CASE = SUITES["smoke"][0]
SIZES = CASE.model_settings()


def exported(folder: Path, size: int = 4 << 20, **changes: Any) -> Path:
    values = {"architecture": "MoELM", "precision": "fp32", "model": SIZES, "tokenizer": None}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**values, **changes}))
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(size)
    return folder


@pytest.mark.parametrize(
    "latest", [b"step\xc2\xb2", b"step" + b"9" * 5000, b"\xff", b"global_step5", b"step-1", b""]
)
def test_a_latest_of_another_kind(latest: bytes, tmp_path: Path) -> None:
    describe(tmp_path, CASE, "hash", None)
    (tmp_path / "latest").write_bytes(latest)
    for reader in (step_of, read_kept):
        with pytest.raises(ResultsError, match=r"latest: .*expected stepN"):
            reader(tmp_path)
    # nor is a training begun over what somebody keeps there
    assert dsmoe("generate", tmp_path, "x") == ResultsError.exit_code


@pytest.mark.parametrize("name", ["latest", "dsmoe.json"])
def test_a_pipe_is_not_waited_for(name: str, tmp_path: Path) -> None:
    describe(tmp_path, CASE, "hash", None)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    assert dsmoe("evaluate", tmp_path) in (2, ResultsError.exit_code)


@pytest.mark.parametrize("text", ["[" * 100_000, "null", "[1]", "{}", '{"case": 3}'])
def test_a_description_of_another_kind(text: str, tmp_path: Path) -> None:
    (tmp_path / "dsmoe.json").write_text(text)
    with pytest.raises(ResultsError, match="expected what dsmoe train writes"):
        read_kept(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ResultsError, match="expected what dsmoe export writes"):
        read_exported(tmp_path)


def test_a_tokenizer_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "given.json").write_text("{}")
    describe(tmp_path, CASE, "hash", str(tmp_path / "given.json"))
    (tmp_path / "latest").write_text("step1")
    (tmp_path / "step1").mkdir()
    (tmp_path / "tokenizer.json").unlink()
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(ResultsError, match=r"tokenizer\.json: cannot be read"):
        tokenizer_to_go_on(tmp_path, str(tmp_path / "given.json"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"unfinished": True}, "was broken off; repeat it"),
        ({"tokenizer": 7}, "found '7', expected str"),
        ({"precision": []}, "expected str"),
        ({"precision": "int3"}, "found 'int3', expected fp32, fp16 or bf16"),
        ({"model": [1]}, "expected dict"),
        ({"model": {**SIZES, "num_layers": 10**18}}, "num_layers 1000"),
        ({"model": {**SIZES, "num_layers": 10**9}}, "expected at least"),
        ({"model": {**SIZES, "vocab_size": "a"}}, "vocab_size a"),
        ({"model": {"hidden_size": 8}}, "no num_layers"),
    ],
)
def test_an_exported_model_of_another_kind(
    changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    """10^9 layers would be built, one by one, until no memory is left."""
    with pytest.raises(ResultsError) as said:
        read_exported(exported(tmp_path, **changes))
    assert expected in str(said.value) and "\n" not in str(said.value)


def test_files_that_cannot_hold_the_weights(tmp_path: Path) -> None:
    assert read_exported(exported(tmp_path))["precision"] == "fp32"
    with pytest.raises(ResultsError, match=r"found 100 bytes; expected at least 1\.516e"):
        exported(tmp_path, size=100)
        (tmp_path / "config.json").unlink()
        check_size(SIZES, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(ResultsError, match=r"a pipe \(FIFO\)"):
        check_size(SIZES, tmp_path)
    with pytest.raises(ResultsError, match="cannot be read"):
        check_size(SIZES, tmp_path / "none")


def test_what_a_library_raises_is_one_line() -> None:
    with pytest.raises(ResultsError, match=r"^folder: KeyError: 'x'$"), reading("folder"):
        {}["x"]
    words = r"^folder: /no/file: No such file or directory; expected .*: correct its rights"
    with pytest.raises(ResultsError, match=words), reading("folder"):
        Path("/no/file").read_bytes()
    with pytest.raises(MemoryError), reading("folder"):
        raise MemoryError


@pytest.mark.parametrize(
    ("names", "others"),
    [
        ([], []),
        ([".export.tmp", "config.json.tmp"], []),  # a killed export
        ([".export.tmp", "model.safetensors"], ["model.safetensors"]),
        (["model.safetensors"], ["model.safetensors"]),
        (["tokenizer.json", "config.json"], ["config.json", "tokenizer.json"]),
    ],
)
def test_an_export_keeps_files_of_others(
    names: list[str], others: list[str], tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    assert names_of_others(tmp_path) == others
    assert names_of_others(exported(tmp_path)) == []


def test_an_export_over_an_older_one_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(opened, "export_model", lambda source, to: exported(to) and 7)
    options = export.make_parser("dsmoe export").parse_args(["kept", "--to", str(tmp_path / "to")])
    for lines in (1, 2):
        with pytest.raises(ProcessEnd):
            export.run(options)
        said = capsys.readouterr().out.splitlines()
        assert len(said) == lines and "7 parameters" in said[-1]
    assert said[0] == f"{tmp_path / 'to'}: the older export that was there is replaced"


def test_a_failed_export_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    describe(tmp_path / "kept", CASE, "hash", None)
    (tmp_path / "kept" / "step1").mkdir()
    with (tmp_path / "kept" / "step1" / "states.pt").open("wb") as file:
        file.truncate(4 << 20)
    (tmp_path / "kept" / "latest").write_text("step1")

    def fail(*_: Any) -> None:
        (tmp_path / "to").mkdir()
        (tmp_path / "to" / "model.safetensors").touch()
        raise OSError(28, "No space left on device")

    module = types.ModuleType("deepspeed.moe.lm")
    module.MoELM, module.MoELMConfig, module.export = None, lambda **_: None, fail  # type: ignore
    monkeypatch.setitem(sys.modules, "deepspeed.moe.lm", module)
    monkeypatch.setattr(opened, "let_import_deepspeed", lambda: None)
    assert dsmoe("export", tmp_path / "kept", "--to", tmp_path / "to") == 10
    assert "No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "to").exists()


def test_a_text_of_other_bytes_is_refused(tmp_path: Path, capsys) -> None:
    assert dsmoe("generate", exported(tmp_path), "\udcff\udcfe") == 2
    assert "found bytes that are no UTF-8" in capsys.readouterr().err
    # what Python makes of it in the locale C
    assert utf8_text("\u65e5".encode().decode("ascii", "surrogateescape")) == "\u65e5"
