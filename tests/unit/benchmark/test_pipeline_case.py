"""``--pipeline``: what it makes of a case, and what it refuses."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
from support.commands import cases_of, dsmoe

from dsmoe.benchmark.cases.case import PIPELINE_SCHEDULES, complete
from dsmoe.benchmark.cases.choice import Changes, WantedCases, chosen_cases, in_words
from dsmoe.benchmark.cases.deepspeed_config import deepspeed_config
from dsmoe.benchmark.predict.fastest import fastest_for, needed
from dsmoe.benchmark.predict.pipelines import predict_case
from dsmoe.benchmark.predict.rates.cluster import load_cluster
from dsmoe.benchmark.predict.search import USABLE
from dsmoe.common.errors import UsageError


def test_a_pipeline_brings_what_it_needs() -> None:
    """ZeRO-1, no CUDA graph, experts inside a stage, and micro-batches of the same size."""
    [plain] = cases_of("4", "--suite", "tuned")
    [piped] = cases_of("4", "--suite", "tuned", "--pipeline", "2")
    parallel = piped.parallel
    assert (parallel.pipeline_parallel_size, parallel.data_parallel_size) == (2, 2)
    assert (parallel.zero_stage, parallel.expert_parallel_size, parallel.copies) == (1, 1, 2)
    assert plain.cuda_graph and not piped.cuda_graph and piped.flat_gradients
    assert piped.micro_batch_size == plain.micro_batch_size
    assert piped.micro_batches == 2 * plain.micro_batches
    changed = {"parallel": plain.parallel, "micro_batches": plain.micro_batches}
    assert dataclasses.replace(piped, **changed, cuda_graph=True) == plain
    assert "pipeline 2 eager, ZeRO-1" in in_words(piped) and "pipeline" not in in_words(plain)
    config = deepspeed_config(piped, "cuda")
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    batch, size, count = (config[name] for name in sizes)
    assert batch == size * count * 2  # over the processes of a stage


def test_a_published_size_that_a_stage_has_no_processes_for_is_chosen_anew() -> None:
    sizes = [
        cases_of("4", "--suite", "artifact", *more)[0].parallel.expert_parallel_size
        for more in ((), ("--pipeline", "2"), ("--pipeline", "4"))
    ]
    assert sizes == [4, 2, 1]


def test_zero_0_has_no_flat_gradients_to_ask_for() -> None:
    [case] = cases_of("4", "--suite", "smoke", "--pipeline", "2", "--zero-stage", "0")
    assert not case.flat_gradients and "zero_optimization" not in deepspeed_config(case, "cpu")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--pipeline 3", "--pipeline 3 does not divide 4 processes"),
        ("--pipeline 2 --zero-stage 2", "expected --zero-stage 1 or 0"),
        ("--pipeline 2 --expert-parallel 4", "4 does not divide the 2 processes of a stage"),
        ("--pipeline 2 --expert-layout across", "expected --expert-layout inside"),
        ("--pipeline 2 --reduce micro_batch", "reduce micro_batch; expected --reduce step"),
        ("--pipeline 2 --no-flat-gradients", "expected --flat-gradients, or --zero-stage 0"),
        ("--pipeline 2 --moe-layer deepspeed", "MoE layer; expected --moe-layer index"),
        ("--pipeline-schedule eager", "eager without a pipeline; expected --pipeline 2 or more"),
        ("--pipeline-schedule 1f1b", "1f1b without a pipeline; expected --pipeline 2 or more"),
        ("--pipeline 2 --tensorboard curves", "--tensorboard with a pipeline"),
        ("--pipeline 2 --cuda-graph --compiled", "expected --no-cuda-graph"),
        ("--pipeline 2 --cuda-graph", "2 pipeline stages with cuda_graph"),
        ("--pipeline 2 --method published --suite artifact", "the published method with another"),
    ],
)
def test_what_a_pipeline_does_not_offer_is_refused(words: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        cases_of("4", *words.split(), device="cpu")


def test_more_stages_than_layers_are_refused() -> None:
    wanted = WantedCases(16, "tuned", changes=Changes(pipeline_parallel_size=16))
    assert chosen_cases(wanted, "cuda")[0].parallel.pipeline_parallel_size == 16
    wanted = WantedCases(32, "tuned", changes=Changes(pipeline_parallel_size=32))
    with pytest.raises(UsageError, match="32 pipeline stages for 16 layers; expected --pipeline"):
        chosen_cases(wanted, "cuda")


def test_a_stage_fills_hosts_or_a_host_stages() -> None:
    def case(processes: int, stages: int, devices: int):
        changes = Changes(pipeline_parallel_size=stages)
        [found] = chosen_cases(
            WantedCases(processes, "tuned", changes=changes), "cuda", None, devices
        )
        return found

    sizes = {
        (stages, devices): case(16, stages, lambda p, d=devices: d).parallel.expert_parallel_size
        for stages, devices in ((2, 8), (4, 8), (2, 4), (2, 2))
    }
    # as many as divide the experts, inside a stage and inside a host
    assert sizes == {(2, 8): 8, (4, 8): 4, (2, 4): 4, (2, 2): 2}
    with pytest.raises(UsageError, match="stages of 4 processes on hosts of 6"):
        case(8, 2, lambda p: 6)


def test_a_record_of_before_had_no_pipeline() -> None:
    [case] = cases_of("4", "--suite", "smoke", device="cpu")
    earlier = case.to_dict()
    del earlier["parallel"]["pipeline_parallel_size"]
    assert complete(earlier) == case.to_dict()


REFUSED = {
    "tuned --pipeline 32": "32 pipeline stages for 16 layers; expected --pipeline of at most 16",
    "tuned --pipeline 2 --zero-stage 2": "expected --zero-stage 1 or 0, or --pipeline 1",
    "tuned --zero-stage 2": "expected --zero-stage 1 or 0, or --pipeline 1",
    "tuned --pipeline 2 --cuda-graph": "expected --no-cuda-graph, or --pipeline 1",
    "tuned --pipeline 2 --expert-layout across": "expected --expert-layout inside, or --pipeline 1",
    "tuned --pipeline auto --method published": "--method published is for the cases",
    "paper --pipeline auto --method published": "the published method with another",
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_refusal_is_one_line_before_anything_starts(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert dsmoe("run", "32", "--suite", *words.split()) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and REFUSED[words] in said[0]
    assert list(tmp_path.iterdir()) == []


def _auto(gpus: int, suite: str, cluster: str, devices: int = 8, memory: int | None = None, **more):
    changes = Changes(pipeline_parallel_size="auto", **more)
    [case] = chosen_cases(
        WantedCases(gpus, suite, changes=changes),
        "cuda",
        None,
        lambda processes: min(processes, devices),
        fastest_for(cluster, "cuda", "", memory),
    )
    return case


@pytest.mark.parametrize("devices", [2, 8])
def test_auto_is_the_fastest_that_fits(devices: int) -> None:
    """No number of stages that can be asked for is faster and fits."""
    cluster = load_cluster("p3.16xlarge")
    here = cluster.with_hosts_of(devices)
    memory = 24 << 30
    found = _auto(16, "tuned", "p3.16xlarge", devices, memory)
    assert needed(found, "cuda") <= USABLE * memory
    assert "by --pipeline auto, for the rates of p3.16xlarge" in found.source
    seconds = predict_case(found, here).seconds
    tried = 0
    for stages in (1, 2, 4, 8, 16):
        for size, schedule in itertools.product((1, 2, 4, 8), PIPELINE_SCHEDULES):
            if stages == 1 and schedule == "eager":
                continue
            changes = Changes(
                pipeline_parallel_size=stages,
                micro_batch_size=size,
                pipeline_schedule=schedule if stages > 1 else None,
            )
            wanted = WantedCases(16, "tuned", changes=changes)
            [other] = chosen_cases(wanted, "cuda", None, lambda processes: devices)
            if needed(other, "cuda") <= USABLE * memory:
                tried += 1
                assert seconds <= predict_case(other, here).seconds
    assert tried > 3


def test_auto_takes_none_where_it_does_not_pay_or_cannot_be() -> None:
    assert _auto(8, "tuned", "h100-400g").parallel == cases_of("8", "--suite", "tuned")[0].parallel
    assert _auto(1, "tuned", "h100-400g") == cases_of("1", "--suite", "tuned")[0]
    assert _auto(16, "tuned", "h100-25g").parallel.pipeline_parallel_size == 2
    board = _auto(16, "tuned", "h100-25g", tensorboard=True)
    assert board.parallel.pipeline_parallel_size == 1


def test_auto_keeps_a_micro_batch_that_is_asked_for() -> None:
    case = _auto(16, "tuned", "h100-25g", micro_batch_size=32)
    assert (case.parallel.pipeline_parallel_size, case.micro_batch_size) == (2, 32)


def test_auto_without_rates_or_memory_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSMOE_HOME", str(tmp_path))  # nothing is calibrated there
    wanted = WantedCases(2, "smoke", changes=Changes(pipeline_parallel_size="auto"))
    with pytest.raises(UsageError, match="run dsmoe calibrate first"):
        chosen_cases(wanted, "cpu", fastest=fastest_for(None, "cpu", "x", None))
    with pytest.raises(UsageError, match="not known here; expected a number of stages"):
        chosen_cases(wanted, "cpu")
    with pytest.raises(UsageError, match=r"none of \d+ settings fits into 1\.0 GiB"):
        _auto(16, "tuned", "h100-25g", memory=1 << 30)


def test_a_suite_with_a_pipeline_goes_without_one() -> None:
    """ZeRO-1 once a step, with a CUDA graph, and micro-batches of the same size."""
    [piped] = cases_of("16", "--suite", "tuned")
    [plain] = cases_of("16", "--suite", "tuned", "--pipeline", "1")
    assert piped.parallel.pipeline_parallel_size == 2 and not piped.cuda_graph
    assert plain.cuda_graph and plain.micro_batch_size == piped.micro_batch_size
    [whole] = cases_of("16", "--suite", "tuned", "--zero-stage", "0")
    assert not whole.flat_gradients and whole.reduce is None
