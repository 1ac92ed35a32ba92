"""Options that several commands share, and what they stand for."""

from __future__ import annotations

import argparse
from types import MappingProxyType
from typing import Any, Mapping

from dsmoe.benchmark.cases.case import (
    ADAFACTOR_MODES,
    EXPERT_LAYOUTS,
    METHODS,
    MOE_IMPLEMENTATIONS,
    OPTIMIZERS,
    PIPELINE_SCHEDULES,
    PRECISIONS,
    REDUCE,
    REDUCE_DTYPES,
)
from dsmoe.benchmark.cases.choice import Changes, WantedCases
from dsmoe.benchmark.cases.placement import AUTO
from dsmoe.benchmark.cases.suites import SUITES
from dsmoe.benchmark.data.sources import TEXT_FIELD
from dsmoe.common.arguments import count, listed, not_empty, positive, seed, whole

ARTIFACT_IDS = "artifact-ids"
UNUSED = argparse.SUPPRESS
SWITCHES = (
    ("remat", "Each layer's activations are computed again in the backward pass."),
    ("compiled", "The training pass goes through torch.compile."),
    ("flat-gradients", "ZeRO takes the gradients of a micro-batch together."),
    (
        "hierarchical",
        "With --reduce step, where hosts have several processes each, gradients are added up "
        "inside a host first and then between hosts, so that a host sends each once (the default "
        "on CPUs; not measured on GPUs). Given, the tokens of experts that span hosts go inside a "
        "host first, too (never the default: no faster on CPUs).",
    ),
    ("cuda-graph", "The kernels of a micro-batch are started by one call."),
    ("deterministic", "Two runs on one card give the same bits; an iteration takes longer."),
)


def add_case_options(
    parser: argparse.ArgumentParser, words: Mapping[str, str] = MappingProxyType({})
) -> None:
    """NUM_GPUS, and the settings of a case that the user may change.

    ``words``: option -> its help, where that is another one for the command; with UNUSED the help
    lists no such option, and the command refuses it with a reason.
    """
    parser.add_argument(
        "gpus",
        metavar="NUM_GPUS",
        type=count,
        help="The run takes so many GPUs, or processes where there is no GPU.",
    )
    case = parser.add_argument_group("which case")
    case.add_argument(
        "--suite",
        choices=list(SUITES),
        help="The case comes from this suite (default: artifact on GPUs, smoke without).",
    )
    case.add_argument(
        "--method",
        choices=list(METHODS),
        help="The case is trained by this project's means (dsmoe, the default), or as the "
        "artifact's script did (published; suites artifact and paper).",
    )
    case.add_argument(
        "--all", action="store_true", help="Every case of the suite up to NUM_GPUS is taken."
    )
    add_changes(parser)
    for action in parser._actions:
        for option in action.option_strings:
            action.help = words.get(option, action.help)


def add_changes(parser: argparse.ArgumentParser, lists: bool = False) -> list[argparse.Action]:
    """The settings in place of a case's own; the options that were added.

    With ``lists`` an option takes several values with commas between them, as texts; not those
    that say how long and from which seed.
    """
    added = []
    titles = (
        "model and batch (default: the case's own)",
        "how it is trained (default: as the case has it)",
    )
    if lists:
        titles = ("settings (several values: 1,8): model and batch", "settings: how it is trained")
    batch, how = map(parser.add_argument_group, titles)

    def add(name: str, group: Any = batch, one: bool = False, **more: Any) -> None:
        added.append(group.add_argument(name, **more))
        if lists and not one and "action" not in more:
            listed(added[-1])

    add(
        "--num-experts",
        type=count,
        metavar="N",
        help="A mixture layer has N experts (not in the suites of the paper).",
    )
    add("--micro-batches", type=count, metavar="N", help="An iteration has N micro-batches.")
    add(
        "--micro-batch-size",
        type=count,
        metavar="N",
        help="A micro-batch of one process has N sequences.",
    )
    add(
        "--global-batch",
        type=count,
        metavar="N",
        help="An iteration has N sequences (not in the suites of the paper).",
    )
    add("--steps", one=True, type=count, metavar="N", help="N iterations are measured.")
    add(
        "--warmup",
        one=True,
        type=whole,
        metavar="N",
        help="N iterations come before the measured ones.",
    )
    add(
        "--seed",
        one=True,
        type=seed,
        metavar="N",
        help="N decides the initial weights and the order of the text.",
    )
    add("--zero-stage", how, type=int, metavar="{0,1,2}", help="ZeRO runs at this stage.")
    add(
        "--expert-parallel",
        how,
        type=_count_or_auto,
        metavar="{N,auto}",
        help="N processes share the experts of a layer; auto: as many as stay inside a host and "
        "divide the experts (default in suites tuned and smoke on several hosts).",
    )
    add(
        "--expert-layout",
        how,
        choices=EXPERT_LAYOUTS,
        help="The processes that share experts are neighbours, inside a host where they fit, and "
        "an expert's copies on other hosts; or across hosts, with an expert's copies neighbours.",
    )
    add(
        "--pipeline",
        how,
        type=_count_or_auto,
        metavar="{P,auto}",
        help="The layers are cut into P stages of neighbouring processes, so that a stage is a "
        "host, several, or a part of one; between stages only hidden states travel. auto: the "
        "stages, and micro-batches of no more than the case's size, that are predicted to be "
        "fastest.",
    )
    add(
        "--pipeline-schedule",
        how,
        choices=PIPELINE_SCHEDULES,
        help="Stages run as little ahead of one another as can be (1f1b), or so far that messages "
        "have the time of a micro-batch, for more memory (eager, the default).",
    )
    add(
        "--precision",
        how,
        choices=PRECISIONS,
        help="Weights and activations have this precision; fp8: bf16, and feed-forward layers and "
        "experts multiply in FP8.",
    )
    add("--optimizer", how, choices=OPTIMIZERS, help="This optimizer makes the step.")
    add(
        "--adafactor-mode",
        how,
        choices=ADAFACTOR_MODES,
        help="AdaFactor takes whole parameters (sharded) or, as in the artifact, ZeRO's partition "
        "for one vector.",
    )
    add(
        "--moe-layer",
        how,
        choices=MOE_IMPLEMENTATIONS,
        help="Experts get their tokens by index, by products (einsum), or in DeepSpeed's own "
        "layer, which always samples the second expert.",
    )
    add(
        "--reduce",
        choices=REDUCE,
        help="With flat gradients, processes add up their gradients once a step or in every "
        "micro-batch; once a step takes more memory and sends less.",
    )
    add(
        "--reduce-dtype",
        choices=REDUCE_DTYPES,
        help="With --reduce, gradients are sent in the model's data type (same), in fp32, or, once "
        "a step, in blocks of int8, and so are the changes of weights.",
    )
    for name, words in SWITCHES:
        field = name.replace("-", "_")
        # two options, since argparse has both in one from Python 3.9 on only
        add(f"--{name}", how, dest=field, action="store_true", default=None, help=words)
        add(
            f"--no-{name}",
            how,
            dest=field,
            action="store_false",
            default=None,
            help=f"--{name} is switched off.",
        )
    return added


def _count_or_auto(text: str) -> int | str:
    return text if text == AUTO else count(text)


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """The text, and how it becomes tokens."""
    text = parser.add_argument_group("text (default: the Python standard library, by bytes)")
    text.add_argument(
        "--data",
        nargs="+",
        type=not_empty,
        default=[],
        metavar="PATH",
        help="The model is trained on these files, folders and globs; of .jsonl and .jsonl.gz each "
        "line is a document. artifact-ids stands for the default text with ids 0 and 1, as the "
        "artifact's script trained on.",
    )
    add_text_field(text)
    text.add_argument(
        "--tokenizer",
        type=not_empty,
        metavar="PATH",
        help="This tokenizers JSON file, or Hugging Face tokenizer folder, makes the tokens.",
    )


def add_text_field(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--text-field",
        type=not_empty,
        default=TEXT_FIELD,
        metavar="NAME",
        help=f"In lines of JSON the text is the field NAME (default: {TEXT_FIELD}).",
    )


def add_plan_options(group: argparse._ArgumentGroup) -> None:
    """The options that a plan alone has."""
    group.add_argument(
        "--model", metavar="NAME", help="The plan is for this named size, on any number of GPUs."
    )
    group.add_argument(
        "--device-memory", type=positive, metavar="GIB", help="One GPU has so much memory."
    )


def text_paths(options: argparse.Namespace) -> list[str]:
    """The paths of ``--data``; none for the default text, as it is or with the artifact's ids."""
    return [] if options.data == [ARTIFACT_IDS] else list(options.data)


def changes_of(options: argparse.Namespace) -> Changes:
    """The changes that the options of :func:`add_changes` ask for."""
    return Changes(
        num_experts=options.num_experts,
        zero_stage=options.zero_stage,
        expert_parallel_size=options.expert_parallel,
        expert_layout=options.expert_layout,
        pipeline_parallel_size=options.pipeline,
        pipeline_schedule=options.pipeline_schedule,
        precision=options.precision,
        remat=options.remat,
        micro_batches=options.micro_batches,
        micro_batch_size=options.micro_batch_size,
        global_batch_size=options.global_batch,
        optimizer=options.optimizer,
        adafactor_mode=options.adafactor_mode,
        moe_implementation=options.moe_layer,
        compiled=options.compiled,
        flat_gradients=options.flat_gradients,
        reduce=options.reduce,
        reduce_dtype=options.reduce_dtype,
        hierarchical=options.hierarchical,
        cuda_graph=options.cuda_graph,
        iterations=options.steps,
        warmup=options.warmup,
        seed=options.seed,
        deterministic=options.deterministic,
        artifact_ids=True if getattr(options, "data", None) == [ARTIFACT_IDS] else None,
        tensorboard=True if getattr(options, "tensorboard", None) else None,
    )


def wanted_of(options: argparse.Namespace) -> WantedCases:
    """The cases that the options of :func:`add_case_options` ask for."""
    return WantedCases(
        options.gpus, options.suite, options.all, options.method, changes_of(options)
    )
