"""What this machine's torch is, without the seconds of importing it where nothing depends on it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import ROOT, hanging

from dsmoe.benchmark.preflight import probe

SAYS = """
import sys
from pathlib import Path
from dsmoe.benchmark.preflight import local_checks, machine
machine.this_machine()
local_checks.quick(Path(sys.argv[1]))
print("torch" in sys.modules)
"""


def version_file(folder: Path, text: str) -> None:
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text("raise ImportError('planted')\n")
    (folder / "torch" / "version.py").write_text(text)


def test_a_run_imports_torch_only_where_it_may_find_gpus(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    command = [sys.executable, "-c", SAYS, str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    )
    built_with_gpus = torch.version.cuda or torch.version.hip
    assert done.stdout.split() == [str(bool(built_with_gpus))]


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda = None\nhip = None\nxpu = None\n", "2.13.0+cpu"),
        ("__version__ = '1.10.2'\ncuda = None\nhip = None\n", "1.10.2"),
        ("__version__ = '2.13.0'\ncuda = '13.0'\nhip = None\n", None),
        ("__version__ = '2.13.0'\ncuda = None\nhip = '6.3'\n", None),
        ("__version__ = '2.13.0'\n", None),
        ("not Python", None),
    ],
)
def test_a_torch_for_the_cpu_says_so_in_its_own_file(
    text: str, version: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version_file(tmp_path, text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert probe.torch_for_cpu() == version
    facts = probe.torch_facts()
    if version:
        assert (facts["torch"], facts["gpus"]) == (version, 0) and facts["cores"] >= 1
    else:  # imported, and what that says is told
        assert facts == {"torch": None, "torch_error": "planted"}


def test_nvidia_smi_that_hangs_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging.program(tmp_path, "nvidia-smi", hanging.CHILD_HANGS, monkeypatch)
    monkeypatch.setattr(probe, "NVIDIA_SMI_SECONDS", 0.5)
    begin = time.monotonic()
    facts = probe.free_gpus()
    assert facts == {"free_gpus": None, "gpu_error": "nvidia-smi gave no answer within 0.5 s"}
    assert time.monotonic() - begin < 30  # its child, which has the output, is not waited for
