"""Is everything on this machine that a run needs? A line with a mark for each thing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Sequence

from dsmoe.benchmark.preflight.asking import Way
from dsmoe.benchmark.preflight.check import FAIL, NOTE, OK, Check
from dsmoe.benchmark.preflight.host_checks import check_hosts
from dsmoe.benchmark.preflight.probe import torch_for_cpu
from dsmoe.benchmark.results.store import LOCK, RECORDS, ROWS
from dsmoe.common.errors import DsmoeError, EnvironmentProblem
from dsmoe.common.packages import dependencies
from dsmoe.common.packages.requires import torch_problem
from dsmoe.common.places import LAUNCHER, checkout_folder, import_root
from dsmoe.common.typed import program
from dsmoe.hosts.host import Host
from dsmoe.patchset.checkout import situation, state

PYTHONS = ((3, 8), (3, 13))  # 3.8: the stack of 2021, docs/reference/compatibility.md
# A run writes a few megabytes; below this something else is about to fail.
DISK_BYTES = 1 << 30
# Importing torch and DeepSpeed from a slow disk takes half a minute.
IMPORT_SECONDS = 180.0


def quick(output: Path) -> None:
    """What a run checks before it starts. Raises EnvironmentProblem with the first failure.

    A torch without GPUs is not imported for it: what the processes of the run import, they check.
    """
    version = torch_for_cpu()
    checks = torch_checks() if version is None else [torch_check(version)]
    for check in [python_check(), *checks, disk_check(output)]:
        if check.state == FAIL:
            raise EnvironmentProblem(f"{check.what}: {check.found}; {check.fix}")


def local_checks(output: Path, several_hosts: bool) -> list[Check]:
    """Every check of this machine."""
    return [
        python_check(),
        *torch_checks(),
        *checkout_checks(checkout_folder()),
        optimizer_check(),
        tool_check("ssh", several_hosts),
        tool_check("pdsh", several_hosts),
        disk_check(output),
    ]


def python_check() -> Check:
    found = f"{platform.python_version()} ({sys.executable})"
    if PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        return Check("Python", OK, found)
    return Check("Python", FAIL, found, "use Python 3.9 to 3.13: DSMOE_PYTHON=/path/to/python")


def torch_check(version: str) -> Check:
    """Whether torch ``version`` is new enough."""
    old = torch_problem(version)
    if not old:
        return Check("torch", OK, version)
    found, _, fix = old.partition(": ")
    return Check("torch", FAIL, found, fix)


def torch_checks() -> list[Check]:
    """torch, the device, and the library that the processes speak through."""
    try:
        import torch

        check = torch_check(torch.__version__)
        if check.state == FAIL:
            return [check]
        import torch.distributed as dist
    except ImportError as error:
        fix = f"run {dependencies.how_to_install('run')}"
        return [Check("torch", FAIL, str(error), fix)]
    checks = [check]
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        found = f"{torch.cuda.device_count()} x {', '.join(sorted(names))}"
        checks.append(Check("device", OK, f"{found}, CUDA {torch.version.cuda}"))
        nccl = dist.is_available() and dist.is_nccl_available()
        version = ".".join(map(str, torch.cuda.nccl.version())) if nccl else "missing"
        fix = "" if nccl else "install a torch with NCCL"
        checks.append(Check("NCCL", OK if nccl else FAIL, version, fix))
        return [*checks, *kernel_checks(torch.cuda.get_device_capability()[0])]
    found = "no GPU that torch can use: small runs on the CPU"
    checks.append(Check("device", NOTE, found))
    gloo = dist.is_available() and dist.is_gloo_available()
    fix = "" if gloo else "install a torch with gloo"
    checks.append(Check("gloo", OK if gloo else FAIL, "there" if gloo else "missing", fix))
    return checks


def kernel_checks(generation: int) -> list[Check]:
    """The packages with kernels for a Hopper GPU; ``generation``: of the compute capability."""
    if generation != 9:
        return []
    pins = dependencies.requirements("hopper")
    if not any(pin.applies() for pin in pins):
        return [Check("kernels", NOTE, "those for this GPU need Python 3.10", "use a newer one")]
    found = {pin.name: dependencies.version_of(pin.name) for pin in pins}
    wrong = [f"{pin.name} {found[pin.name] or 'missing'}" for pin in dependencies.missing(pins)]
    if wrong:
        what = f"{', '.join(wrong)}: an iteration takes about 6 % longer"
        return [Check("kernels", NOTE, what, f"run {dependencies.how_to_install('hopper')}")]
    return [Check("kernels", OK, ", ".join(f"{name} {here}" for name, here in found.items()))]


def checkout_checks(place: Path) -> list[Check]:
    """The checkout's patch state by tree id, and where a run's ``import deepspeed`` leads."""
    what = "patched DeepSpeed"
    try:
        found = state.describe(place)
    except DsmoeError as error:  # no git, or none that works
        return [Check(what, FAIL, str(error), "fix that first")]
    trees = ", ".join(f"{folder} {tree[:12]}" for folder, tree in found.result.items())
    fix = f"{program('apply')} {place}" + ("" if place.exists() else " --from-release")
    if found.name == situation.APPLIED:
        checks = [Check(what, OK, f"{place}: {found.name}, {trees}")]
    elif found.name == situation.APPLIED_EDITED:
        edits = f"applied, then edited: {', '.join(found.edited[:3])}"
        checks = [Check(what, NOTE, f"{place}: {edits}", "a run refuses edits: " + fix)]
    elif not place.exists():
        checks = [Check(what, NOTE, f"{place}: not there yet, a run builds it", fix)]
    else:
        checks = [Check(what, FAIL, f"{place}: {found.name} {found.message}".strip(), fix)]
    launcher = place / LAUNCHER
    if not launcher.is_file():
        return [*checks, Check("launcher", NOTE, f"{launcher}: not there yet")]
    return [*checks, Check("launcher", OK, str(launcher)), import_check(place)]


def import_check(place: Path) -> Check:
    """Where the training processes would import deepspeed from."""
    paths = [str(place), *filter(None, [os.environ.get("PYTHONPATH")])]
    code = "import deepspeed; print(deepspeed.__file__)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            check=False,
            cwd=os.path.sep,
            timeout=IMPORT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        said = f"importing it did not end within {IMPORT_SECONDS:g} s"
        return Check("import deepspeed", FAIL, said, f"see what hangs: python -c '{code}'")
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
        return Check("import deepspeed", FAIL, said, f"run {dependencies.how_to_install('run')}")
    found = done.stdout.strip().splitlines()[-1]
    if Path(found).resolve() == (place / "deepspeed" / "__init__.py").resolve():
        return Check("import deepspeed", OK, found)
    return Check("import deepspeed", FAIL, found, "another one comes first: pip uninstall it")


def optimizer_check() -> Check:
    """The artifact's own optimizer package, which the tests compare with."""
    [wanted] = [r for r in dependencies.requirements("run") if r.name == "torch-optimizer"]
    found = dependencies.version_of(wanted.name)
    if found and wanted.allows(found):
        return Check(wanted.name, OK, found)
    return Check(wanted.name, NOTE, found or "missing", f"pip install {wanted}")


def tool_check(name: str, needed: bool) -> Check:
    found = shutil.which(name)
    if found:
        return Check(name, OK, found)
    fix = f"install {name} (Debian: {'openssh-client' if name == 'ssh' else name})"
    return Check(name, FAIL if needed else NOTE, "missing; several machines need it", fix)


def disk_check(output: Path) -> Check:
    """Free space where the results go: in ``output`` or the nearest folder above it."""
    for name in (ROWS, RECORDS, LOCK):
        if os.path.lexists(output / name) and not (output / name).is_file():
            found = f"{output / name} is not a regular file"
            return Check("disk", FAIL, found, "remove it, or name another folder with --output")
    place = output.absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        found = f"{place} is {'not writable' if place.is_dir() else 'a file'}"
        return Check("disk", FAIL, found, "name another folder (--output; dsmoe train: --save)")
    free = shutil.disk_usage(place).free
    found = f"{free / (1 << 30):.1f} GiB free for {output}"
    if free < DISK_BYTES:
        return Check("disk", NOTE, found, "free some space, or name another --output")
    return Check("disk", OK, found)


def refuse_output(output: Path) -> None:
    """Raises EnvironmentProblem where no results can be written to ``output``."""
    check = disk_check(output)
    if check.state == FAIL:
        raise EnvironmentProblem(f"--output: {check.found}; {check.fix}")


def all_checks(hosts: Sequence[Host], way: Way | None, output: Path) -> list[Check]:
    """Every check of this machine and, where there is a way to them, of ``hosts``."""
    checks = local_checks(output, several_hosts=way is not None and way.needs_ssh)
    if way is not None:
        checks += check_hosts(hosts, way, import_root(), checkout_folder())
    return checks
