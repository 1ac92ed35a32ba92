"""The stages of a pipeline as they are priced: their layers, what waits, what is sent and held."""

from __future__ import annotations

import dataclasses

import pytest

from dsmoe.benchmark.cases.case import Parallel
from dsmoe.benchmark.cases.choice import Changes, changed
from dsmoe.benchmark.cases.suites import SUITES, find_case
from dsmoe.benchmark.predict.amounts.parameters import held, parts
from dsmoe.benchmark.predict.amounts.traffic import Sent
from dsmoe.benchmark.predict.memory import peak_bytes, pipeline_peak_bytes
from dsmoe.benchmark.predict.pipelines import predict_case, predict_pipeline, stage_case
from dsmoe.benchmark.predict.process_time import Process
from dsmoe.benchmark.predict.rates.cluster import load_cluster
from dsmoe.benchmark.predict.time import predict
from dsmoe.common.errors import UsageError


def test_the_stages_together_are_the_model() -> None:
    """Layers, parameters and work of the run's cut; the tied embedding is there twice."""
    for case in SUITES["tuned"] + SUITES["scaled"]:
        stages = case.parallel.pipeline_parallel_size
        alone = stage_case(case, stages, case.micro_batches)
        cluster = load_cluster("h200-400g")
        found = parts(case.model, case.remat, stages)
        assert sum(part.dense + part.mixtures for part in found) == case.model.num_layers
        assert sum(part.mixtures for part in found) == case.model.num_layers // 2
        own = [held(alone, part) for part in found]
        copy = case.model.vocab_size * case.model.hidden_size if stages > 1 else 0
        assert sum(one.whole for one in own) == held(alone).whole + copy
        assert sum(one.tensors for one in own) == held(alone).tensors + (stages > 1)
        process = Process(alone, cluster, 8)
        shares = [process.micro_batch(part).exposed for part in found]
        once = predict(alone, cluster).exposed
        for name in ("products", "attention", "elementwise", "loss", "exchange"):
            whole = case.micro_batches * sum(share[name] for share in shares)
            assert whole == pytest.approx(once[name])
    uneven = parts(find_case("tuned", 2).model, False, 2)
    assert [(one.dense, one.mixtures) for one in uneven] == [(3, 2), (1, 2)]


def test_a_stage_waits_for_the_others() -> None:
    cluster = load_cluster("p3.16xlarge")
    case = find_case("paper", 16)
    stage = stage_case(case, 2, 16)
    assert stage.parallel.processes * 2 == case.parallel.processes
    assert stage.micro_batch_size == 1024 // 8 // 16
    found = predict_pipeline(stage, cluster, 2)
    process = Process(stage, cluster, 8)
    first, last = (process.micro_batch(part) for part in parts(case.model, case.remat, 2))
    assert first.seconds < last.seconds  # the output layer
    assert found.exposed["bubble"] == pytest.approx(first.seconds)
    for name in ("products", "attention", "elementwise", "loss"):
        assert found.exposed[name] == pytest.approx(16 * last.exposed[name])
    # a hidden state and its gradient, of each micro-batch, from each of a host's processes
    assert found.sent["pipeline"] == 2 * 16 * 8 * (8 * 1024 * 1536 * 2)
    # eager shows the first and last of 16 messages each way
    crossing = process.prices.message(Sent(serial=found.sent["pipeline"], between=1, calls=32))
    shown = found.exposed["exchange"] - 16 * last.exposed["exchange"]
    assert shown == pytest.approx(crossing / 16)
    assert found.hidden["exchange"] == pytest.approx(crossing - shown)
    assert predict_pipeline(stage, cluster, 2, "1f1b").seconds > found.seconds
    # the gradient of the tied embedding crosses once, after all reductions
    tied = Sent(between=1, serial=4 * 32000 * 1536, calls=1)
    assert found.exposed["reduction"] >= process.prices.message(tied)
    with pytest.raises(UsageError, match="3 stages: found 16 processes"):
        stage_case(case, 3, 16)
    with pytest.raises(UsageError, match="16 stages: found 8 layers"):
        small = dataclasses.replace(find_case("tuned", 2), parallel=Parallel(16))
        stage_case(small, 16, 16)
    # the plan and a run's record ask for the whole case
    whole = dataclasses.replace(
        case,
        micro_batches=16,
        cuda_graph=False,
        parallel=Parallel(16, 8, 1, pipeline_parallel_size=2),
        reduce="step",
    )
    alone = stage_case(whole, 2, 16)
    assert alone.parallel == Parallel(8, 8, 1)
    assert predict_case(whole, cluster) == predict_pipeline(alone, cluster, 2, "1f1b")


def test_two_stages_take_what_they_took_without_messages() -> None:
    """Two H200s, products by cuBLASLt, 16 micro-batches of 64, no message sent (2026-11-28)."""
    changes = Changes(pipeline_parallel_size=2, micro_batch_size=64)
    case = changed(find_case("tuned", 2), changes, 2)
    stage = stage_case(case, 2, 16)
    process = Process(stage, load_cluster("h200-400g").with_hosts_of(2), 2)
    for part, measured in zip(parts(case.model, case.remat, 2), (1.117, 1.114)):
        each = process.micro_batch(part)
        step = process.step(part, each)
        seconds = 16 * each.seconds + step.optimizer + step.launch
        assert seconds == pytest.approx(measured, rel=0.05)


def test_a_link_that_is_slower_than_the_stages_is_not_hidden() -> None:
    """Whatever the schedule, every micro-batch crosses it."""
    case = find_case("tuned", 64)
    fast, slow = (predict_case(case, load_cluster(f"h100-{rate}g")) for rate in (400, 25))
    sent = fast.sent["pipeline"]
    assert slow.seconds > sent / (25e9 / 8) > fast.seconds


def test_a_pipeline_holds_a_micro_batch_for_each_stage() -> None:
    stage = dataclasses.replace(stage_case(find_case("paper", 16), 2, 16), remat=False)
    part = parts(stage.model, False, 2)[0]
    one, two, three = (peak_bytes(stage, part, held_at_once=n) for n in (1, 2, 3))
    assert 0 < two - one == three - two
    most = {name: pipeline_peak_bytes(stage, 2, name) for name in ("1f1b", "eager")}
    assert most == {"1f1b": two, "eager": three}
