"""Run one proof in the Python whose DeepSpeed is to be judged; needs nothing of dsmoe.

    PYTHON dsmoe/defects/there.py dsmoe/defects/proofs/KIND/NAME.py ... [--limit SECONDS]

A proof has ``observe(tools, phase)``, which every process of a phase runs and which returns what
can be written as JSON, and ``judge(seen)``, which gets ``seen[phase][rank]`` and returns three
texts: ``lives``, ``fixed`` or ``not applicable`` with what was seen and what is right. ``PHASES``
is the number of processes of each phase; phases share ``tools.folder``. The versions and then each
verdict are printed as a line of JSON. A proof whose process fails is ``could not run``, with the
reason.
"""

import argparse
import contextlib
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import stand_in  # type: ignore[import-not-found]

#: How long the compiler may take on a slow machine.
BUILD_SECONDS = 600.0


class NotApplicable(Exception):
    """A proof raises this where the release lacks what the defect is about."""


class Tools:
    """What proofs share: the place of this process, and calls that changed over the releases."""

    NotApplicable = NotApplicable

    def __init__(self, folder):
        self.folder = folder
        self.rank = int(os.environ["RANK"])
        self.world = int(os.environ["WORLD_SIZE"])

    def begin(self):
        """Make the process group: gloo on the CPU, NCCL where there is a GPU."""
        import deepspeed
        import torch

        if not torch.distributed.is_initialized():
            backend = "gloo" if on_cpu() else "nccl"
            if backend == "nccl":
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            deepspeed.init_distributed(dist_backend=backend)
        return deepspeed

    def start(self, model, config=None, optimizer=None, **more):
        """A DeepSpeed engine; ``config`` is laid over a micro-batch of one sample."""
        deepspeed = self.begin()
        whole = {
            "train_micro_batch_size_per_gpu": 1,
            "steps_per_print": 10**9,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        whole.update(config or {})
        if optimizer is None and "model_parameters" not in more:
            more["model_parameters"] = list(model.parameters())
        return deepspeed.initialize(model=model, optimizer=optimizer, config=whole, **more)

    def step(self, engine, loss):
        """One backward pass and one step."""
        engine.backward(loss)
        engine.step()

    def experts(self, hidden, expert, number, parallel=1, **options):
        """A layer of ``number`` copies of ``expert`` over groups of ``parallel`` processes."""
        import inspect

        self.begin()
        from deepspeed.moe.layer import MoE

        if "ep_size" in inspect.signature(MoE.__init__).parameters:
            options["ep_size"] = parallel
        else:
            from deepspeed.utils import groups

            groups.initialize(ep_size=parallel)
        return MoE(hidden_size=hidden, expert=expert, num_experts=number, **options)

    def groups(self, model):
        """The optimizer's parameter groups of a model with experts."""
        from deepspeed.moe import utils

        split = getattr(utils, "split_params_into_different_moe_groups_for_optimizer", None)
        if split is not None:
            return list(split({"params": list(model.parameters()), "name": "all"}))
        experts = [p for p in model.parameters() if utils.is_moe_param(p)]
        dense = [p for p in model.parameters() if not utils.is_moe_param(p)]
        return [{"params": dense, "name": "all"}, {"params": experts, "name": "moe", "moe": True}]

    def fill(self, model, local_experts=1):
        """Give every parameter values that depend on its name and its expert's global number."""
        import torch

        with torch.no_grad():
            for name, parameter in model.named_parameters():
                name = re.sub(
                    r"(?<=deepspeed_experts\.)\d+",
                    lambda m: str(int(m.group()) + self.rank * local_experts),
                    name,
                )
                generator = torch.Generator().manual_seed(sum(map(ord, name)) * 7 + len(name))
                values = torch.randn(parameter.shape, generator=generator) * 0.5
                parameter.copy_(values.to(parameter.dtype))

    def values(self, tensor):
        """A tensor as a flat list of floats."""
        return tensor.detach().float().cpu().flatten().tolist()


def work(proof, phase, folder):
    """What one process of a phase does; writes its result beside the others'."""
    tools = Tools(folder)
    try:
        found = {"value": proof["observe"](tools, phase)}
    except NotApplicable as reason:
        found = {"not applicable": str(reason)}
    Path(folder, f"seen-{phase}-{tools.rank}.json").write_text(json.dumps(found))


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def on_cpu():
    """Whether the proofs run without a GPU."""
    return not os.environ.get("CUDA_VISIBLE_DEVICES") and not Path("/dev/nvidia0").exists()


def environment(proof):
    """The variables of every process: this machine alone, one thread."""
    made = dict(os.environ)
    made.update(
        OMP_NUM_THREADS="1",
        GLOO_SOCKET_IFNAME="lo",
        MASTER_ADDR="127.0.0.1",
        PYTHONWARNINGS="ignore",
        PYTHONPATH=os.environ.get("PYTHONPATH", ""),
    )
    if on_cpu() and not stand_in.needed():
        made["DS_ACCELERATOR"] = "cpu"
    if not proof.get("TORCH_DEFAULTS"):
        # torch 2.6 and later refuse checkpoints of older releases; that is a question of its own
        made["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    return made


def start_worker(file, phase, folder, log, place):
    """A process of a phase: a fork on the CPU, which has DeepSpeed imported, else a new Python.

    ``file``: the proof's; in a fork it may be the proof itself.
    """
    if not on_cpu():
        command = [sys.executable, __file__, file, "--phase", str(phase), "--folder", folder]
        with log.open("wb") as out:
            return subprocess.Popen(
                command,
                env=place,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd=folder,
            ).pid
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        out = os.open(str(log), os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ.clear()
        os.environ.update(place)
        work(file if isinstance(file, dict) else runpy.run_path(file), phase, folder)
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def run_phase(file, proof, phase, folder, ends):
    """Start a phase's processes and wait; what each saw. Raises RuntimeError with the reason."""
    number, port = proof["PHASES"][phase], str(free_port())
    logs = [Path(folder, f"log-{phase}-{rank}") for rank in range(number)]
    codes: dict[int, int] = {}
    for rank, log in enumerate(logs):
        place = environment(proof)
        place.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(number), MASTER_PORT=port)
        codes[start_worker(file, phase, folder, log, place)] = None
    try:
        while None in codes.values() and not any(codes.values()):
            if time.monotonic() > ends:
                raise RuntimeError("no answer within the limit of time")
            time.sleep(0.05)
            collect(codes)
        if any(codes.values()):
            time.sleep(1)  # the others say what they saw
            collect(codes)
            for code, log in zip(codes.values(), logs):
                if code:
                    raise RuntimeError(reason(log.read_text(errors="replace"), code))
    finally:
        for worker in codes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker, signal.SIGKILL)
        for worker in [worker for worker, code in codes.items() if code is None]:
            os.waitpid(worker, 0)
    names = [Path(folder, f"seen-{phase}-{rank}.json") for rank in range(number)]
    found = [json.loads(name.read_text()) for name in names]
    for each in found:
        if "not applicable" in each:
            raise NotApplicable(each["not applicable"])
    return [each["value"] for each in found]


def collect(codes):
    """Note the exit codes of the processes that have ended; a signal counts as its number."""
    for worker in [worker for worker, code in codes.items() if code is None]:
        ended, status = os.waitpid(worker, os.WNOHANG)
        if ended:
            codes[worker] = os.WEXITSTATUS(status) or (status & 127)


def reason(text, code):
    """The line of a log that says why its process failed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit)\b", line)]
    return ((errors or lines or [f"exit code {code}"])[-1])[:300]


def prove(file, limit):
    """The verdict of one proof: a dictionary with state, seen and right, or a reason."""
    proof = runpy.run_path(file)
    proof.setdefault("PHASES", (1,))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="proof-") as folder:
        try:
            seen = [
                run_phase(file, proof, phase, folder, began + limit)
                for phase in range(len(proof["PHASES"]))
            ]
            state, found, right = proof["judge"](seen)
            verdict = {"state": state, "seen": found, "right": right}
        except NotApplicable as text:
            verdict = {"state": "not applicable", "reason": str(text)}
        except RuntimeError as text:
            verdict = {"state": "could not run", "reason": str(text).replace(folder, "FOLDER")}
    return {**verdict, "seconds": round(time.monotonic() - began, 1)}


def warm_up():
    """Let DeepSpeed compile what an engine needs on the CPU, outside of any time limit.

    Whether that works is shown by the proofs, which do the same.
    """
    if not on_cpu():
        return

    def observe(tools, phase):
        import torch

        tools.start(torch.nn.Linear(1, 1), {"optimizer": {"type": "Adagrad", "params": {"lr": 1}}})

    proof = {"PHASES": (1,), "observe": observe}
    with tempfile.TemporaryDirectory(prefix="proof-") as folder, contextlib.suppress(RuntimeError):
        run_phase(proof, proof, 0, folder, time.monotonic() + BUILD_SECONDS)


def versions():
    """The releases that are judged; imports DeepSpeed. Raises what the import raises."""
    device = "cpu" if on_cpu() else "cuda"
    if on_cpu() and stand_in.needed():
        stand_in.install()
        device = "cpu for CUDA"
    import deepspeed
    import torch

    # It compiles for minutes, and then carries the reductions of one host in gloo's place.
    if "deepspeed_shm_comm" in getattr(deepspeed.ops, "__compatible_ops__", {}):
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if on_cpu():
        stand_in.allow_fp16()
    return {
        "deepspeed": deepspeed.__version__,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "device": device,
    }


def main():
    parser = argparse.ArgumentParser(description="Runs proofs in this Python.")
    parser.add_argument("proofs", nargs="+")
    parser.add_argument("--limit", type=float, default=180.0)
    parser.add_argument("--phase", type=int)
    parser.add_argument("--folder")
    options = parser.parse_args()
    files = [str(Path(proof).resolve()) for proof in options.proofs]
    stand_in.allow_views()
    if options.phase is not None:
        work(runpy.run_path(files[0]), options.phase, options.folder)
        os._exit(0)  # what a library keeps running must not hold the process
    os.environ.update(environment({}))
    for variable in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(variable, None)
    try:
        said = versions()
    except Exception as error:
        said = {"error": f"{type(error).__name__}: {error}".strip()[:300]}
    say(said)
    if "error" in said:
        return
    with tempfile.TemporaryDirectory(prefix="extensions-") as folder:
        # A folder of our own: a build that was killed keeps its lock, on which all others wait.
        os.environ["TORCH_EXTENSIONS_DIR"] = folder
        warm_up()
        for file in files:
            say({"proof": file, **prove(file, options.limit)})


def say(record):
    """One line of JSON; a line of its own, whatever the libraries print."""
    sys.stdout.write("\n" + json.dumps(record) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
