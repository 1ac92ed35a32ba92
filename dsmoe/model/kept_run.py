"""``dsmoe train`` from the request to the last checkpoint: checks, launcher, progress, the end."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.cases.choice import in_words
from dsmoe.benchmark.cases.deepspeed_config import deepspeed_config
from dsmoe.benchmark.data.corpus import CorpusInfo
from dsmoe.benchmark.launchers.job import Job
from dsmoe.benchmark.preflight import local_checks
from dsmoe.benchmark.run import launch, patched_deepspeed
from dsmoe.benchmark.run.every_case import FINISHED, check_layout, step
from dsmoe.benchmark.run.folder import (
    CASE,
    DEEPSPEED,
    OUTCOME,
    make_run_folder,
    read_json,
    write_json,
)
from dsmoe.benchmark.run.one_case import prepare_text
from dsmoe.benchmark.run.progress import Progress
from dsmoe.benchmark.run.request import Request, run_name
from dsmoe.common.errors import ResultsError, TrainingFailed, UsageError
from dsmoe.common.interrupts import Interrupted, StopSignals
from dsmoe.common.typed import program
from dsmoe.model import checkpoint_folder as kept
from dsmoe.model.kept_names import PROCESS, STOP


@dataclass(frozen=True)
class Plan:
    """``save``: the checkpoints' folder; ``every`` so many iterations one; ``load``: the folder to
    go on from; ``rate_warmup``: iterations in which the learning rate rises (0: none)."""

    save: Path
    every: int
    load: Path | None
    tensorboard: Path | None
    rate_warmup: int = 0


class SavingStop(StopSignals):
    """The first signal asks the processes to save and end; the second one ends them at once."""

    asked: Interrupted | None = None
    place: Path | None = None

    def check(self) -> None:
        try:
            super().check()
        except Interrupted as error:
            if self.asked is not None or self.place is None:
                raise
            self.asked = error
            print(f"== {error}: saving after this iteration; once more ends at once", flush=True)
            self.place.touch()
            self.listen_again()


def train_and_keep(request: Request, plan: Plan, stop: SavingStop) -> int:
    """Train the request's one case. Raises DsmoeError for what is wrong before anything starts."""
    [(case, layout)] = request.cases
    check_plan(plan, case)
    local_checks.quick(plan.save)
    step(f"text: {', '.join(request.text.paths) or 'the Python standard library'}")
    text = prepare_text(request, case)
    print(
        f"  {text.info.train_tokens:,} tokens to train on, {text.info.held_out_tokens:,} held out"
    )
    if plan.load and kept.read_kept(plan.load).content != text.info.content:
        print("  note: this is another text than the checkpoint was trained on")
    step(f"DeepSpeed checkout {request.checkout} ({request.checkout_reason})")
    patched_deepspeed.ensure(request.checkout)
    patched_deepspeed.let_import(request.checkout)
    check_layout(layout, request)
    with kept.at_work(plan.save):
        # again: another training may have ended meanwhile
        return _train(request, plan, stop, text.info, check_plan(plan, case))


def _train(request: Request, plan: Plan, stop: SavingStop, content: CorpusInfo, done: int) -> int:
    [(case, _)] = request.cases
    options = request.text.options()
    kept.describe(plan.save, case, content.content, request.text.tokenizer, options)
    run_dir = _prepare(case, request, plan, content)
    unit = "GPU" if request.machine.device == "cuda" else "CPU process"
    step(f"training {in_words(case, unit)}" + (f", from iteration {done}" if done else ""))
    ended = _launch(case, request, run_dir, done, stop)
    saved = kept.step_of(plan.save)
    where = f"checkpoint of iteration {saved} in {plan.save}" if saved else "no checkpoint"
    if ended.reason is not None and stop.asked is None:
        raise TrainingFailed(f"{ended.reason}; {where}")
    if stop.asked is not None:
        stop.asked.args = (
            f"{stop.asked}; {where}: go on with --load {shlex.quote(str(plan.save))}",
        )
        raise stop.asked
    outcome = read_json(run_dir / OUTCOME)
    print()
    print(f"last loss                     {outcome['losses'][-1]:.4f}")
    if outcome["held_out_loss"] is not None:
        print(f"held-out loss                 {outcome['held_out_loss']:.4f}")
    print(f"{where}; log and losses in {run_dir}")
    print(f'see what it writes: {program("generate")} {shlex.quote(str(plan.save))} "def "')
    return FINISHED


def check_plan(plan: Plan, case: Case) -> int:
    """The iterations that are done already. Raises UsageError."""
    there = kept.step_of(plan.save)
    if plan.load is None:
        if there is not None:
            raise UsageError(
                f"{plan.save}: found a checkpoint of iteration {there}; go on from it with "
                f"--load {plan.save}, or name another folder to --save"
            )
        lost = kept.checkpoints(plan.save)
        if lost:
            raise UsageError(
                f"{plan.save}: found {', '.join(lost[-3:])} and no file {kept.LATEST}; write the "
                f"name of one there and go on with --load {plan.save}, or name another folder to "
                "--save"
            )
        return 0
    before = kept.read_kept(plan.load)
    names: tuple[str, ...] = (
        "model",
        "global_batch_size",
        "moe_implementation",
        "optimizer",
        "seed",
    )
    if case.optimizer == "adafactor" and case.parallel.zero_stage:
        names += ("adafactor_mode",)  # without ZeRO the states of both modes have one form
    other = [n for n in names if getattr(before.case, n) != getattr(case, n)]
    if other:
        found = ", ".join(f"{n} {getattr(before.case, n)}" for n in other)
        raise UsageError(f"{plan.load}: found a checkpoint of another case: {found}")
    zero = [c.parallel.zero_stage for c in (before.case, case)]
    if zero[0] != zero[1] and 0 in zero and case.parallel.pipeline_parallel_size == 1:
        raise UsageError(
            f"{plan.load}: found a checkpoint of ZeRO stage {zero[0]}, expected stage {zero[1]} as "
            f"here; give --zero-stage {zero[0]}"
        )
    stages = [c.parallel.pipeline_parallel_size for c in (before.case, case)]
    if stages[0] != stages[1] and 1 in stages:
        found = f"{stages[0]} pipeline stages" if stages[0] > 1 else "no pipeline"
        raise UsageError(
            f"{plan.load}: found a checkpoint of {found}, and these files are other ones; expected "
            f"--pipeline {'with 2 stages or more' if stages[1] == 1 else '1'}, or the weights alone"
            " by dsmoe export"
        )
    if before.step >= case.iterations:
        raise UsageError(
            f"{plan.load}: found {before.step} iterations done, and --steps asks for "
            f"{case.iterations} in all; expected more"
        )
    if plan.save != plan.load and there is not None:
        raise UsageError(f"{plan.save}: found another checkpoint there; name an empty folder")
    return before.step


def _prepare(case: Case, request: Request, plan: Plan, content: CorpusInfo) -> Path:
    config = deepspeed_config(case, request.machine.device)
    if plan.rate_warmup:
        warmup = {
            "warmup_min_lr": 0.0,
            "warmup_max_lr": case.learning_rate,
            "warmup_num_steps": plan.rate_warmup,
        }
        config["scheduler"] = {"type": "WarmupLR", "params": warmup}
    spec = {
        "case": case.to_dict(),
        "cache": str(request.cache),
        "text": request.text.options(),
        "known": dataclasses.asdict(content),
        "limits": vars(request.limits),
        "kept": {
            key: str(value.absolute()) if isinstance(value, Path) else value
            for key, value in dataclasses.asdict(plan).items()
        },
    }
    try:
        run_dir = make_run_folder(plan.save, run_name(case))
        write_json(run_dir / CASE, spec)
        write_json(run_dir / DEEPSPEED, config)
    except OSError as error:
        raise ResultsError(f"{plan.save}: cannot be written: {error.strerror}") from error
    return run_dir


def _launch(
    case: Case, request: Request, run_dir: Path, done: int, stop: SavingStop
) -> launch.LauncherEnd:
    layout = request.cases[0][1]
    checkout, folder, gpus = request.checkout, run_dir.absolute(), request.machine.gpus
    job = Job(checkout, folder, layout, request.port, request.master, PROCESS, gpus)
    stop.place = folder / STOP
    bar = Progress(case.iterations, case.tokens_per_step, done=done, time_left=True)
    with bar as progress:
        seen, note = progress.iteration, progress.note
        return launch.run(job, request.limits, seen, note, stop, request.launcher)
