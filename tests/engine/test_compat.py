"""The base on today's Python and torch: imports, starts and saves without a complaint."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from support.ranks import run_ranks

from dsmoe.patchset.base import Base

# DeepSpeed itself opens version.txt without closing it, and only Python's own ResourceWarning
# (off by default) says so.
WARN = ["-W", "always", "-W", "ignore::ResourceWarning"]


def run_python(code: str, *options: str, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, cwd=cwd
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess:
    """An import in an empty folder, which says every warning and prints the version.

    After it, those of the two modules that are loaded by DeepSpeed and not by torch.
    """
    code = (
        "import sys, torch; before = set(sys.modules); import deepspeed\n"
        "print(deepspeed.__version__)\n"
        "print({'distutils', 'setuptools'} & (set(sys.modules) - before))"
    )
    command = [sys.executable, *WARN, "-c", code]
    folder = tmp_path_factory.mktemp("empty")
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


def test_imports_without_a_warning(imported: subprocess.CompletedProcess) -> None:
    """torch._six, the moved torch names, tensorboardX: none is needed at import."""
    assert imported.returncode == 0 and "Warning" not in imported.stderr, imported.stderr[-2000:]


def test_version_in_any_folder(imported: subprocess.CompletedProcess, base: Base) -> None:
    """The version comes from the tree, so that a ZeRO-1 checkpoint loads from any folder."""
    assert imported.stdout.splitlines()[-2:-1] == [base.version], imported.stderr[-2000:]


def test_nothing_that_compiles_is_imported(imported: subprocess.CompletedProcess) -> None:
    """setuptools, a fifth of a second in every training process."""
    assert imported.stdout.splitlines()[-1:] == ["set()"], imported.stderr[-2000:]


@pytest.mark.long
def test_setuptools_comes_before_distutils(checkout: Path) -> None:
    """Python 3.12 has no distutils of its own; setuptools puts one in place when imported.

    As there, the standard library's distutils is hidden, and so (-S) is the start-up hook by which
    an installed setuptools supplies it unasked: a setuptools on PYTHONPATH has no such hook.
    """
    code = (
        f"import sys; sys.path += {sys.path!r}\n"
        "from importlib.machinery import PathFinder\n"
        "class Python312(PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        "        if name == 'distutils': raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Python312)\n"
        "from op_builder.builder import OpBuilder\n"
        "print(OpBuilder.has_function(OpBuilder, 'printf', ()))"
    )
    assert run_python(code, "-S", cwd=checkout).split()[-1] in (
        "True",
        "False",
    )  # a compiler or not


def test_configuration_prints() -> None:
    """The encoder of the printed configuration knows mappings and sequences on Python 3.10 on."""
    from deepspeed.runtime.config_utils import ScientificNotationEncoder

    text = json.dumps({"a": [1, 2e6], "b": {"c": 5e8}}, cls=ScientificNotationEncoder, indent=2)
    assert json.loads(text) == {"a": [1, 2e6], "b": {"c": 5e8}}


def test_no_extension_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flatten and unflatten come from torch, without a compiler."""
    from deepspeed.ops.op_builder import UtilsBuilder

    def never(*args, **kwargs):
        raise AssertionError("an extension is being built")

    # In its place, not in it: importing it fails in a process that has looked for pip before, as
    # other tests do (setuptools then takes its distutils back).
    extensions = types.SimpleNamespace(load=never)
    monkeypatch.setitem(sys.modules, "torch.utils.cpp_extension", extensions)
    monkeypatch.setattr(torch.utils, "cpp_extension", extensions, raising=False)
    ops = UtilsBuilder().load()
    tensors = [torch.arange(6.0).view(2, 3), torch.ones(2)]
    flat = ops.flatten(tensors)
    assert flat.tolist() == [0, 1, 2, 3, 4, 5, 1, 1]
    assert [torch.equal(a, b) for a, b in zip(ops.unflatten(flat, tensors), tensors)] == [True] * 2


def test_neutral_torch_is_torch_on_cuda() -> None:
    """With a CUDA device the neutral module hands out torch itself, so nothing can differ."""
    code = (
        "import torch; torch.cuda.is_available = lambda: True\n"
        "from deepspeed.utils.neutral import torch as t, backend, local_types\n"
        "print(t is torch, backend(), local_types(['torch.cuda.HalfTensor']))"
    )
    # deepspeed/__init__ is left out: it would really use the device that this pretends to have.
    package = (
        "import sys, types, os; p = [x for x in sys.path if os.path.isdir(x + '/deepspeed')]\n"
    )
    package += "for n in ('deepspeed', 'deepspeed.utils'):\n"
    package += "    m = types.ModuleType(n); m.__path__ = [p[0] + '/' + n.replace('.', '/')]\n"
    package += "    sys.modules[n] = m\n"
    assert run_python(package + code).strip() == "True nccl ['torch.cuda.HalfTensor']"


def test_engine_starts_and_saves_without_a_warning(tmp_path: Path) -> None:
    """Broadcast of leaves, positional state_dict arguments: nothing is deprecated on the way."""
    said = run_ranks(1, "warnings_of_a_run", {"steps": 1}, str(tmp_path))[0]
    assert said == []


def test_tensorboard_section_writes_events(tmp_path: Path) -> None:
    """The configuration's own "tensorboard" section, with today's TensorBoard."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    section = {"enabled": True, "output_path": str(tmp_path), "job_name": "job"}
    run_ranks(1, "train", {"steps": 2, "config": {"tensorboard": section}})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "job")).Reload()
    assert len(events.Scalars("Train/Samples/train_loss")) == 2


def test_both_names_of_the_bf16_section() -> None:
    """The base knows "bfloat16" and ignored the later "bf16" without a message."""
    section = {"enabled": True}
    for name in ("bf16", "bfloat16"):
        scenario = {"steps": 1, "config": {name: section}}
        assert run_ranks(1, "parameter_dtypes", scenario)[0] == ["torch.bfloat16"]


def test_bf16_without_zero_keeps_fp32_weights() -> None:
    """Stage 0 trains in bf16 as stage 2 does, to rounding; without fp32 copies it falls behind."""
    common = {"precision": "bf16", "optimizer": "AdamW", "steps": 4}
    scenarios = [{**common, "stage": stage} for stage in (0, 2)]
    whole, sharded = run_ranks(1, "train_all", scenarios)[0]
    assert whole["losses"] == pytest.approx(sharded["losses"], rel=2e-4)
