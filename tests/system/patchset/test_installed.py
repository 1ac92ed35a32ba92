"""The ``deepspeed`` 0.5.4 that pip installs from the release archive, patched and given back.

pip installs it once into a folder; every test has a copy of that folder in PYTHONPATH, where
Python finds the package and its metadata as in any environment.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.patch_project import ROOT

from dsmoe.patchset.base import load_bases
from dsmoe.patchset.sources.archive import fetch_archive

BASE = load_bases(name="0.5.4")[0]
TRAIN = """
import os, torch, torch.distributed as dist, deepspeed
from deepspeed.moe.lm import MoELM, MoELMConfig, param_groups
from deepspeed.utils import groups
store = "file://" + os.path.abspath("store")
dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
groups.initialize(ep_size=1)
model = MoELM(MoELMConfig(hidden_size=16, num_layers=2, num_experts=2, num_heads=2,
    vocab_size=32, sequence_length=8, ffn_multiplier=2), seed=0)
config = {"train_batch_size": 2, "steps_per_print": 10**9,
    "zero_optimization": {"stage": 2},
    "optimizer": {"type": "Adafactor", "params": {"lr": 0.05, "relative_step": False}}}
engine, *_ = deepspeed.initialize(
    model=model, model_parameters=param_groups(model), config=config)
tokens = torch.arange(18).view(2, 9) % 32
for _ in range(8):
    loss = engine(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    engine.backward(loss); engine.step()
    print("LOSS", loss.item(), deepspeed.__file__, deepspeed.__version__)
os._exit(0)
"""


# A program that is killed at the first thing it does after a file came or went.
KILLED = """
import os, runpy, signal, sys
target = sys.argv[1]
there = os.path.exists(target)
def kill(event, given):
    if event.startswith(("open", "os.", "subprocess.")) and os.path.exists(target) != there:
        signal.raise_signal(signal.SIGKILL)
sys.addaudithook(kill)
sys.argv = sys.argv[2:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def environment(site: Path | None) -> dict[str, str]:
    found = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "DSMOE_DEEPSPEED")}
    if site is not None:
        found["PYTHONPATH"] = str(site)
    return found


def tool(site: Path | None, *args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "apply_patch.py"), "--installed", *map(str, args)]
    return subprocess.run(
        command, env=environment(site), capture_output=True, text=True, timeout=120
    )


def status(site: Path) -> int:
    return tool(site, "--status").returncode


def snapshot(site: Path) -> dict[str, str]:
    """Every file below ``site`` but compiled ones: its mode and the hash of its bytes."""
    return {
        path.relative_to(site).as_posix(): f"{path.stat().st_mode:o} "
        + hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(site.rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
    }


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``pip install deepspeed==0.5.4`` gives, from the pinned archive."""
    site = tmp_path_factory.mktemp("installed") / "site"
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--target", str(site)]
    command = [sys.executable, "-m", "pip", "install", "-q", *options, str(fetch_archive(BASE))]
    done = subprocess.run(
        command, env=environment(None), capture_output=True, text=True, cwd=str(site.parent)
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return site


@pytest.fixture
def site(pristine: Path, tmp_path: Path) -> Path:
    shutil.copytree(pristine, tmp_path / "site")
    return tmp_path / "site"


@pytest.mark.long
def test_apply_train_refuse_an_edit_and_revert(site: Path, tmp_path: Path) -> None:
    before = snapshot(site)
    assert status(site) == 20 and tool(site, "--check").returncode == 0
    assert snapshot(site) == before
    done = tool(site)
    assert done.returncode == 0 and "applied:" in done.stdout, done.stderr
    assert status(site) == 0
    again = tool(site)
    assert again.returncode == 0 and "already applied" in again.stdout
    made = subprocess.run(
        [sys.executable, str(ROOT / "apply_patch.py"), str(tmp_path / "checkout")]
        + ["--from-release", "--base", "0.5.4"],
        capture_output=True,
    )
    assert made.returncode == 0
    checkout = tmp_path / "checkout"
    for folder, there in (
        ("deepspeed", "deepspeed"),
        ("op_builder", "op_builder"),
        ("op_builder", "deepspeed/ops/op_builder"),
    ):
        for path in (checkout / folder).rglob("*.py"):
            name = path.relative_to(checkout / folder)
            assert (site / there / name).read_bytes() == path.read_bytes(), name
    run = subprocess.run(
        [sys.executable, "-c", TRAIN],
        env={**environment(site), "GLOO_SOCKET_IFNAME": "lo", "LOCAL_RANK": "0"},
        cwd=str(tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = [line.split() for line in run.stdout.splitlines() if line.startswith("LOSS")]
    assert len(lines) == 8, run.stderr[-2000:]
    assert {(line[2], line[3]) for line in lines} == {
        (str(site / "deepspeed/__init__.py"), "0.5.4")
    }
    assert float(lines[-1][1]) < float(lines[0][1])
    engine = site / "deepspeed/runtime/engine.py"
    patched = engine.read_bytes()
    engine.write_bytes(patched + b"# mine\n")
    assert status(site) == 21
    done = tool(site, "--revert")
    assert done.returncode == 7 and str(engine) in done.stderr
    assert engine.read_bytes() == patched + b"# mine\n"
    engine.write_bytes(patched)
    done = tool(site, "--revert")
    assert done.returncode == 0 and snapshot(site) == before
    assert status(site) == 20 and tool(site, "--revert").returncode == 0


def test_edited_files_are_listed_and_kept(site: Path) -> None:
    engine, other = site / "deepspeed/runtime/engine.py", site / "deepspeed/git_version_info.py"
    original = engine.read_bytes()
    engine.write_bytes(original + b"# mine\n")
    other.unlink()
    before = snapshot(site)
    for command in ([], ["--check"]):
        done = tool(site, *command)
        assert done.returncode == 7 and str(engine) in done.stderr and str(other) in done.stderr
        assert snapshot(site) == before
    assert status(site) == 22
    shutil.copy2(site / "deepspeed/ops/op_builder/builder.py", site / "op_builder/builder.py")
    engine.write_bytes(original)
    other.write_bytes((ROOT / "README.md").read_bytes())  # still not the base's
    assert tool(site).returncode == 7


@pytest.mark.parametrize("action", ["apply", pytest.param("revert", marks=pytest.mark.slow)])
@pytest.mark.long
def test_a_killed_run_is_finished_or_taken_back(action: str, site: Path) -> None:
    """Killed while it writes the files: the state has a name, and both ways out work."""
    before = snapshot(site)
    record = site / "deepspeed/.dsmoe.git/dsmoe/applied.json"
    target = site / "deepspeed/moe/lm/model.py"  # among the first that are written or removed
    if action == "revert":
        assert tool(site).returncode == 0
    for way in ("finish", "back"):
        command = [sys.executable, "-c", KILLED, str(target), str(ROOT / "apply_patch.py")]
        options = ["--installed", *(["--revert"] if action == "revert" else [])]
        killed = subprocess.run(command + options, env=environment(site), stdout=subprocess.DEVNULL)
        assert killed.returncode == -signal.SIGKILL and record.exists()
        assert status(site) == 23
        assert tool(site, *(["--revert"] if way == "back" else [])).returncode == 0
        if way == "back":
            assert snapshot(site) == before
        else:
            assert status(site) == 0
        if way == "finish" and action == "apply":
            assert tool(site, "--revert").returncode == 0


@pytest.mark.slow
def test_another_series_is_renewed(site: Path, tmp_path: Path) -> None:
    before = snapshot(site)
    for folder in ("bases", "patch", "overlay"):
        shutil.copytree(ROOT / folder, tmp_path / "old" / folder)
    (tmp_path / "old/overlay/deepspeed/old.py").write_text("old = 1\n")
    (tmp_path / "old/overlay/deepspeed/moe/gshard/activation.py").write_text("old = 1\n")
    assert tool(site, "--bases", tmp_path / "old/bases").returncode == 6  # not the locked one
    assert snapshot(site) == before
    _relock(tmp_path / "old/bases/0.5.4", site)
    assert tool(site, "--bases", tmp_path / "old/bases").returncode == 0
    assert (site / "deepspeed/old.py").exists() and status(site) == 24
    assert tool(site).returncode == 0 and status(site) == 0
    assert not (site / "deepspeed/old.py").exists()
    assert tool(site, "--revert").returncode == 0 and snapshot(site) == before


def _relock(base: Path, site: Path) -> None:
    """Write the lock of a changed series from what the refusal says."""
    done = tool(site, "--bases", base.parent, "--json")
    lock = json.loads((base / "result.json").read_text())
    for line in json.loads(done.stdout)["details"]:
        top, rest = line.split("/ would be ")
        lock["trees"][top] = rest.split(",")[0]
    from dsmoe.patchset.base import load_base
    from dsmoe.patchset.series import load_series

    lock["series"] = load_series(load_base(base)).digest
    (base / "result.json").write_text(json.dumps(lock))


def test_other_versions_and_none_are_refused(site: Path, tmp_path: Path) -> None:
    done = tool(None)
    if done.returncode != 3:
        pytest.skip("a deepspeed is installed in this very environment")
    assert done.stderr.count("\n") == 1 and "deepspeed==0.5.4" in done.stderr
    metadata = next(site.glob("deepspeed-*.dist-info")) / "METADATA"
    metadata.write_text(metadata.read_text().replace("Version: 0.5.4", "Version: 0.6.0"))
    done = tool(site)
    assert done.returncode == 4 and "0.6.0" in done.stderr and done.stderr.count("\n") == 1
    assert tool(site, tmp_path).returncode == 2
    assert tool(site, "--export").returncode == 2
