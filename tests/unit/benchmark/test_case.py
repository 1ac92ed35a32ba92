"""A case written to a file comes back as the same case, also from a record of schema 1."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.records import failure, record

from dsmoe.benchmark.cases.case import (
    ADAFACTOR_MODES,
    ATTENTION,
    EARLIER_NAMES,
    METHODS,
    MODEL_SETTINGS,
    MOE_IMPLEMENTATIONS,
    OPTIMIZERS,
    PRECISIONS,
    REDUCE,
    SECOND_EXPERT_POLICIES,
    Case,
    ModelCase,
    Parallel,
    complete,
)
from dsmoe.benchmark.cases.suites import SUITES, find_case
from dsmoe.benchmark.results.record import RunRecord
from dsmoe.common.errors import UsageError

numbers = st.floats(0, 100, allow_nan=False)


@st.composite
def models(draw: st.DrawFn) -> ModelCase:
    heads = draw(st.integers(1, 8))
    experts = draw(st.integers(1, 4)) * 4
    return ModelCase(
        name=draw(st.text(min_size=1, max_size=8)),
        hidden_size=heads * draw(st.integers(1, 64)),
        num_layers=2 * draw(st.integers(1, 8)),
        num_experts=experts,
        num_heads=heads,
        sequence_length=draw(st.integers(1, 4096)),
        vocab_size=draw(st.integers(1, 60000)),
        ffn_multiplier=draw(st.integers(1, 16)),
        top_k=draw(st.integers(1, experts)),
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any case that can be: every field is drawn, within what goes together."""
    share = draw(st.sampled_from((1, 2, 4)))
    stage = draw(st.sampled_from((0, 1, 2)))
    parallel = Parallel(share * draw(st.integers(1, 8)), share, stage)
    micro_batches = draw(st.integers(1, 16))
    implementation = draw(st.sampled_from(MOE_IMPLEMENTATIONS))
    flat = stage > 0 and draw(st.booleans())
    own = implementation == "deepspeed"
    compiled = not own and draw(st.booleans())
    return Case(
        suite=draw(st.text(max_size=8)),
        model=draw(models()),
        parallel=parallel,
        global_batch_size=parallel.processes * micro_batches * draw(st.integers(1, 8)),
        micro_batches=micro_batches,
        precision=draw(st.sampled_from([p for p in PRECISIONS if p != "fp8" or not own])),
        loss_scale=draw(numbers),
        remat=draw(st.booleans()),
        optimizer=draw(st.sampled_from(OPTIMIZERS)),
        adafactor_mode=draw(st.sampled_from(ADAFACTOR_MODES)),
        learning_rate=draw(numbers),
        weight_decay=draw(numbers),
        gradient_clipping=draw(numbers),
        dropout=draw(numbers),
        capacity_factor=draw(numbers),
        min_capacity=draw(st.integers(0, 64)),
        second_expert_policy=draw(st.sampled_from(SECOND_EXPERT_POLICIES)),
        moe_implementation=implementation,
        compiled=compiled,
        flat_gradients=flat,
        reduce=draw(st.sampled_from((None, *REDUCE))) if flat else None,
        cuda_graph=compiled and flat and draw(st.booleans()),
        aux_loss_coefficient=draw(numbers),
        attention=draw(st.sampled_from(ATTENTION)),
        deterministic=draw(st.booleans()),
        artifact_ids=draw(st.booleans()),
        method=draw(st.sampled_from(sorted(METHODS))),
        warmup=draw(st.integers(0, 9)),
        iterations=draw(st.integers(1, 99)),
        seed=draw(st.integers(0, 2**63 - 1)),
        source=draw(st.text(max_size=8)),
    )


@settings(deadline=None)
@given(cases())
def test_a_case_comes_back_from_json(case: Case) -> None:
    written = json.loads(json.dumps(case.to_dict()))
    assert Case.from_dict(written) == case
    # what is read is not what was written by accident: every field is there by its name
    assert written.keys() == {field.name for field in dataclasses.fields(Case)}
    assert complete(written) == written


@pytest.mark.parametrize("case", [case for cases in SUITES.values() for case in cases])
def test_the_suites_cases_come_back(case: Case) -> None:
    assert Case.from_dict(json.loads(json.dumps(case.to_dict()))) == case


@pytest.mark.parametrize(
    "broken",
    [
        lambda values: values.pop("model"),
        lambda values: values.pop("global_batch_size"),
        lambda values: values.update(another=1),
        lambda values: values.update(model=None),
        lambda values: values["parallel"].update(ranks=2),
        lambda values: values["model"].pop("num_layers"),
    ],
)
def test_what_is_no_case_is_one_line(broken: Any) -> None:
    values = json.loads(json.dumps(find_case("smoke", 2).to_dict()))
    broken(values)
    with pytest.raises(UsageError, match=r"^case: .*expected what Case.to_dict writes") as caught:
        Case.from_dict(values)
    assert "\n" not in str(caught.value)


def test_the_model_is_given_the_case_s_settings() -> None:
    case = find_case("artifact", 8)
    settings = case.model_settings()
    sizes = {k: v for k, v in dataclasses.asdict(case.model).items() if k != "name"}
    assert sizes.items() <= settings.items()
    assert all(settings[name] == getattr(case, name) for name in MODEL_SETTINGS)
    assert settings["eval_capacity_factor"] == case.capacity_factor


def in_earlier_names(values: dict[str, Any]) -> dict[str, Any]:
    """A case as version 0.1.0 wrote it."""
    earlier = {new: old for old, new in EARLIER_NAMES.items()}
    renamed = {earlier.get(name, name): value for name, value in values.items()}
    for part in ("model", "parallel"):
        renamed[part] = {earlier.get(k, k): v for k, v in renamed[part].items()}
    return renamed


@pytest.mark.parametrize("run", [record(), record("paper", 16, "cuda"), failure()])
def test_a_record_of_schema_1_is_read_in_today_s_names(run: RunRecord) -> None:
    values = json.loads(run.to_json())
    old = in_earlier_names(values["case"])
    assert old["model"].keys() >= {"hidden", "layers", "experts", "heads", "sequence", "vocab"}
    assert {"global_batch", "clip", "second_choice", "moe_layer", "auxiliary"} <= old.keys()
    values.update(schema=1, case=old)
    found = RunRecord.from_json(json.dumps(values))
    assert found == run and Case.from_dict(found.case).to_dict() == run.case


def test_a_record_of_schema_1_lacks_what_came_later() -> None:
    """A setting that did not exist yet had the value that is today's default."""
    run = record()
    values = json.loads(run.to_json())
    values.update(schema=1, case=in_earlier_names(values["case"]))
    for name in ("compiled", "flat_gradients", "cuda_graph"):
        del values["case"][name]
    found = Case.from_dict(RunRecord.from_json(json.dumps(values)).case)
    assert (found.compiled, found.flat_gradients, found.cuda_graph) == (False, False, False)
    assert found.model == Case.from_dict(run.case).model
