"""Options change the case that they name, and nothing else of it."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from support.commands import cases_of

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.cases.choice import Changes, WantedCases, check_device, chosen_cases
from dsmoe.benchmark.cases.deepspeed_config import deepspeed_config
from dsmoe.benchmark.cases.suites import find_case
from dsmoe.common.errors import UsageError

GIB = 2**30


def test_suite_tuned_takes_larger_micro_batches_where_they_fit() -> None:
    sizes = {}
    for gib in (None, 80, 141):
        found = cases_of("4", "--all", "--suite", "tuned", memory=gib and gib * GIB)
        sizes[gib] = [case.micro_batch_size for case in found]
    assert sizes == {None: [64, 64, 32], 80: [64, 64, 32], 141: [128, 128, 64]}
    [case] = cases_of("1", "--suite", "tuned", "--micro-batch-size", "32", memory=2**38)
    assert case.micro_batch_size == 32
    assert cases_of("1", memory=2**38)[0].micro_batch_size == 8


def test_without_options_the_case_is_the_suite_s() -> None:
    assert cases_of("4") == [find_case("artifact", 4)]
    assert cases_of("2", device="cpu") == [find_case("smoke", 2)]
    assert cases_of("2", "--suite", "paper", device="cpu") == [find_case("paper", 2)]


def test_options_change_the_case_and_nothing_else() -> None:
    [case] = cases_of("4", "--micro-batch-size", "16", "--no-remat", "--precision", "bf16")
    expected = {"micro_batches": 16, "remat": False, "precision": "bf16"}
    assert case == replace(find_case("artifact", 4), **expected)
    assert case.micro_batch_size == 16
    config = deepspeed_config(case, "cuda", ("/events", "run"))
    assert config["train_batch_size"] == 1024 and config["bfloat16"] == {"enabled": True}
    assert config["tensorboard"] == {"enabled": True, "output_path": "/events", "job_name": "run"}


def test_every_change_is_one_of_the_case_s_own_settings() -> None:
    """By its name there, so that a request reads like the case that comes of it."""
    case = find_case("tuned", 2)
    names = {field.name for part in (case, case.model, case.parallel) for field in fields(part)}
    changes = {field.name for field in fields(Changes)}
    assert changes - names == {"micro_batch_size", "tensorboard"}  # see Changes


def test_another_number_of_experts_is_in_the_model_s_name() -> None:
    [case] = cases_of("1", "--suite", "tuned", "--num-experts", "64")
    model = find_case("tuned", 1).model
    assert case.model == replace(model, name="380M-E64", num_experts=64)
    with pytest.raises(UsageError, match="the models of suite artifact are the paper's"):
        cases_of("1", "--num-experts", "64")


def test_the_artifact_s_optimizer() -> None:
    [case] = cases_of("1", "--adafactor-mode", "artifact")
    params = deepspeed_config(case, "cuda")["optimizer"]["params"]
    assert (params["mode"], params["relative_step"]) == ("artifact", True)


def test_all_cases_up_to_a_number_of_gpus() -> None:
    assert [case.parallel.processes for case in cases_of("8", "--all")] == [1, 4, 8]
    assert [case.iterations for case in cases_of("32", "--all")] == [5] * 5
    with pytest.raises(UsageError, match="suite paper has no case for 0 GPUs"):
        chosen_cases(WantedCases(0, "paper", every=True), "cuda")


def test_what_cannot_go_with_a_change_is_switched_off_unless_asked_for() -> None:
    def fast(case: Case) -> tuple[bool, bool, bool]:
        return case.compiled, case.flat_gradients, case.cuda_graph

    def of(**changes: object) -> Case:
        return chosen_cases(WantedCases(1, "tuned", changes=Changes(**changes)), "cuda")[0]

    assert fast(of()) == (True, True, True)
    assert fast(of(zero_stage=0)) == (True, False, False)
    assert fast(of(compiled=False)) == (False, True, False)
    assert fast(of(tensorboard=True)) == (True, True, False)
    own_layer = of(moe_implementation="deepspeed")
    assert fast(own_layer) == (False, True, False)
    assert own_layer.second_expert_policy == "sampling"
    with pytest.raises(UsageError, match="flat_gradients with ZeRO stage 0"):
        of(zero_stage=0, flat_gradients=True)
    with pytest.raises(UsageError, match="cuda_graph without compiled"):
        of(compiled=False, cuda_graph=True)


def test_cases_that_this_machine_cannot_run_are_refused() -> None:
    with pytest.raises(UsageError, match="this machine has 2; name at most that many"):
        check_device(cases_of("4"), "cuda", 2)
    check_device(cases_of("4"), "cuda", 4)
    check_device(cases_of("2", device="cpu"), "cpu", None)
    with pytest.raises(UsageError, match="suite tuned needs GPUs and none was found"):
        check_device(cases_of("1", "--suite", "tuned", device="cpu"), "cpu", None)
