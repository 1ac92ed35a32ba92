"""What every test sees: the project's folder, one thread, and fixtures for what costs something.

Only tests that ask for it (the fixture ``checkout``, the folders engine and gpu) have a DeepSpeed.
"""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from dsmoe.patchset.base import Base

ROOT = Path(__file__).resolve().parents[1]
# What takes longest begins first, so that the processes end together.
ORDER = ("tests/system/cluster", "tests/system", "tests/engine", "tests")
# Files that stay in one process together, as they compare with one run: on_one_host.
TOGETHER = tuple(
    f"tests/system/cluster/test_{name}.py" for name in ("benchmark_hosts", "slurm", "torchrun")
)


def pytest_configure(config: pytest.Config) -> None:
    # for the processes that tests start; pyproject.toml does the same for this one
    paths = [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    # the artifact's variable would name a checkout of the user's
    os.environ.pop("DEEPSPEED_PATH", None)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The patched DeepSpeed that the tests run; built where it is missing."""
    from support import patched

    return patched.importable()


@pytest.fixture(scope="session")
def base() -> Base:
    """The base of that DeepSpeed."""
    from support import patched

    return patched.base()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``-n``: a file stays in one process, and files begin in the order of the tests."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return TOGETHER[0] if file in TOGETHER else file

    config.option.loadscopereorder = False  # by the number of tests; ORDER knows better
    return ByFile(config, log)


def _place(nodeid: str) -> int:
    """The place in ORDER of a test's folder."""
    return next((i for i, f in enumerate(ORDER) if nodeid.startswith(f"{f}/")), len(ORDER))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _place(item.nodeid))
    for item in items:
        for mark in item.iter_markers("not_on"):
            from support import patched

            if mark.args[0] == patched.base().name:
                reason = f"base {mark.args[0]}: {mark.kwargs['reason']}"
                item.add_marker(pytest.mark.skip(reason=reason))
        for mark in item.iter_markers("slow_on"):
            from support import patched

            if mark.args[0] == patched.base().name:
                item.add_marker(pytest.mark.slow)


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.freeze()  # the modules and the tests; DeepSpeed collects several times an engine


def pytest_sessionfinish() -> None:
    gc.freeze()  # pytest collects five times now, which takes four seconds of a process's end


@pytest.fixture(scope="session")
def gpus() -> int:
    """CUDA devices here; counted in a process of its own, so that no test inherits CUDA."""
    if not shutil.which("nvidia-smi") and not any(Path("/dev").glob("nvidia[0-9]*")):
        return 0
    code = "import torch; print(torch.cuda.device_count())"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True).stdout or 0)
