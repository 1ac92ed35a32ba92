"""What a training process starts with: process group, model, engine, text, kernels."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.moe.expert_hosts import exchange_by_hosts, near_group
from deepspeed.moe.gshard.all_to_all import group_name
from deepspeed.moe.kernels import copy_engines
from deepspeed.moe.kernels.policy import find_ahead, kernels, notes
from deepspeed.moe.lm import MoELM, MoELMConfig, compile_problem, param_groups
from deepspeed.moe.pipeline import StageEngine, StageModel, make_stage_groups
from deepspeed.runtime.micro_batch_graph import MicroBatchGraph, graph_problem, plain_micro_batch
from deepspeed.utils import groups  # type: ignore[attr-defined]
from deepspeed.utils.neutral import backend

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.data import corpus
from dsmoe.benchmark.run import marks
from dsmoe.benchmark.run.folder import CASE, DEEPSPEED, read_json
from dsmoe.benchmark.run.layout import INTERFACE, gloo_interface
from dsmoe.benchmark.train.energy import EnergyMeter
from dsmoe.benchmark.train.failure import Stage
from dsmoe.benchmark.train.link_bytes import LinkBytes
from dsmoe.common.errors import TrainingFailed
from dsmoe.common.packages.no_compiler import without_compiler


def model_config(case: Case) -> MoELMConfig:
    """The model's configuration, whose names a case has."""
    return MoELMConfig(**case.model_settings())


@dataclass
class Run:
    """What the steps of a run share. ``device`` is where the tokens go.

    ``micro_batch(tokens, labels)`` does the forward and backward pass of one and returns its loss;
    None in a pipeline, whose engine does a whole step.
    """

    folder: Path
    case: Case
    engine: Any
    text: corpus.Corpus
    device: torch.device
    # Where the run is, and the seconds that one iteration may take (0: any).
    stage: Stage
    seconds: float
    micro_batch: Callable[..., torch.Tensor] | None
    # Counts what a host sends, where that was asked for.
    link: LinkBytes | None = None
    # None on the CPU.
    energy: EnergyMeter | None = None

    @property
    def rank(self) -> int:
        return dist.get_rank()

    @property
    def data_size(self) -> int:
        """How many processes have micro-batches of their own: those of a stage of a pipeline."""
        return self.case.parallel.data_parallel_size

    @property
    def data_rank(self) -> int:
        """This process's place among them."""
        return self.rank % self.data_size

    def wait_for_device(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def start(folder: Path, stage: Stage) -> Run:
    """Join the process group, build the model and the engine, open the text."""
    spec = read_json(folder / CASE)
    case = Case.from_dict(spec["case"])
    limits = spec.get("limits", {"first": 0, "later": 0})
    stage.enter("while the processes meet", limits["first"])
    cuda = torch.cuda.is_available()
    if cuda and case.compiled:
        find_ahead()
    if not case.compiled:
        without_compiler(torch.optim.Optimizer)
    if case.deterministic:
        be_deterministic()
    local_rank = int(os.environ["LOCAL_RANK"])
    if cuda:
        torch.cuda.set_device(local_rank)
    if case.precision == "fp8":
        require_fp8()
    interface = gloo_interface(os.environ)
    if interface:
        os.environ[INTERFACE] = interface
    deepspeed.init_distributed(dist_backend=backend(), verbose=False)  # type: ignore[attr-defined]
    known = corpus.CorpusInfo(**spec["known"]) if "known" in spec else None
    text = corpus.prepare(Path(spec["cache"]), **spec["text"], known=known)
    engine = engine_of(case, read_json(folder / DEEPSPEED), stage)
    # DeepSpeed's own layer knows one step only.
    exchange_by_hosts(bool(case.hierarchical) and case.moe_implementation != "deepspeed")
    if case.compiled:
        compile_training(engine.module)
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    passes = None if isinstance(engine, StageEngine) else micro_batch_of(engine, case)
    link = LinkBytes(device) if spec.get("link") else None
    energy = EnergyMeter(device) if cuda else None
    return Run(folder, case, engine, text, device, stage, limits["later"], passes, link, energy)


def engine_of(case: Case, config: dict[str, Any], stage: Stage) -> Any:
    """DeepSpeed's engine with the model, or with this process's stage of it."""
    parallel = case.parallel
    stages = parallel.pipeline_parallel_size
    if stages > 1:
        made = make_stage_groups(stages, parallel.expert_parallel_size)
        stage.words = "while the model is built"
        torch.manual_seed(case.seed)
        engine = StageEngine(StageModel(model_config(case), stages, made.stage), made, config)
        torch.manual_seed(case.seed + made.stage)  # stages draw independently, as layers do
        stage.detail = lambda: engine.doing
        stage.watch(dist.get_rank())
        return engine
    groups.initialize(ep_size=parallel.expert_parallel_size, expert_layout=parallel.expert_layout)
    torch.manual_seed(case.seed)
    stage.words = "while the model is built"
    model = MoELM(model_config(case))
    engine, *_ = deepspeed.initialize(  # type: ignore[attr-defined]
        model=model, model_parameters=param_groups(model), config=config
    )
    return engine


def be_deterministic() -> None:
    """Let torch take the operations that give the same bits in every run, or fail.

    Call it before CUDA is used: cuBLAS reads its variable when it starts.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    if hasattr(torch.utils, "deterministic"):  # torch 2.2: uninitialised memory may stay so
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def message_names(engine: Any) -> dict[str, str]:
    """What carried the messages between stages; {} without a pipeline."""
    return {"stages": engine.transport.name} if isinstance(engine, StageEngine) else {}


def kernel_names(case: Case) -> dict[str, str]:
    """What computed the products with GELU and attention's gradient, and with expert parallelism
    what exchanged the tokens; if nothing is compiled, that alone and only if it went by hosts."""
    exchange, group = {}, groups.get_expert_parallel_group()
    near = near_group(group)
    if case.parallel.expert_parallel_size > 1:
        first = "copy engines" if copy_engines.connected(group_name(near)) else backend()
        exchange["exchange"] = first if near is group else f"{first} in a host, {backend()} between"
    if not case.compiled:
        return {} if near is group else exchange
    if case.precision == "fp32":
        return {**dict.fromkeys(("products", "attention"), "torch"), **exchange}
    if case.precision == "fp8":
        library = kernels().libraries().fp8
        exchange["fp8"] = library.VERSION if library else "torch"
    # with dropout attention is torch's (deepspeed/moe/lm/attention.py)
    attention = {"attention": "torch"} if case.dropout else {}
    return {**kernels().names(), **attention, **exchange}


def compile_training(model: MoELM) -> None:
    """Let ``model`` train through torch.compile; raises TrainingFailed where torch cannot."""
    problem = compile_problem()
    if problem:
        raise TrainingFailed(f"{problem}; or run without: --no-compiled")
    try:
        kernels().libraries()
    except ValueError as error:
        raise TrainingFailed(str(error)) from error
    model.compile_training()


def require_fp8() -> None:
    """Raises TrainingFailed for a GPU without FP8; a CPU multiplies the same values in fp32."""
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9):
        raise TrainingFailed(
            f"{torch.cuda.get_device_name()} has no FP8 products (compute capability 8.9 has); "
            "run with --precision bf16"
        )


def say_notes(run: Run) -> None:
    """Send the fallbacks to the process that reports; it has said those it knows of already."""
    for words in notes() if run.case.compiled else ():
        marks.say(run.rank, marks.NOTE, words)
    if run.energy and run.energy.problem:
        marks.say(run.rank, marks.NOTE, run.energy.problem)


def micro_batch_of(engine: Any, case: Case) -> Callable[..., torch.Tensor]:
    """What does a micro-batch's passes; raises TrainingFailed where no graph can be recorded."""
    if not case.cuda_graph:
        return plain_micro_batch(engine)
    problem = graph_problem(engine)
    if problem:
        raise TrainingFailed(f"{problem}; or run without: --no-cuda-graph")
    return MicroBatchGraph(engine)
