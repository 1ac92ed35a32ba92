"""When gradients are reduced, where nobody says so: by hosts and memory, with the reason."""

from __future__ import annotations

import dataclasses

import pytest

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.cases.choice import Changes, WantedCases, case_of_model, chosen_cases, in_words
from dsmoe.benchmark.cases.deepspeed_config import deepspeed_config
from dsmoe.benchmark.cases.reduction import with_reduce
from dsmoe.benchmark.cases.suites import find_case
from dsmoe.benchmark.predict.memory import peak_bytes
from dsmoe.common.errors import UsageError


def chosen(
    gpus: int, suite: str, per_host: int, memory: int | None = None, **changes: object
) -> Case:
    wanted = WantedCases(gpus, suite, changes=Changes(**changes))  # type: ignore[arg-type]
    [case] = chosen_cases(wanted, "cuda", memory, lambda processes: min(per_host, processes))
    return case


def without_stages(gpus: int, micro_batches: int, memory: int | None = None) -> Case:
    """The case of ``tuned`` without its pipeline, on hosts of eight GPUs."""
    case = find_case("tuned", gpus)
    alone = {"pipeline_parallel_size": 1, "pipeline_schedule": "1f1b", "zero_stage": 2}
    parallel = dataclasses.replace(case.parallel, **alone)
    case = dataclasses.replace(case, parallel=parallel, micro_batches=micro_batches, reduce=None)
    return with_reduce(case, 8, memory)


def test_one_host_keeps_the_stages_own_way() -> None:
    case = chosen(4, "smoke", 4)
    assert (case.reduce, case.reduce_reason) == (None, "")
    assert "reduced" not in in_words(case)


def test_several_hosts_reduce_once_a_step_and_say_why() -> None:
    case = chosen(4, "smoke", 2)
    assert (case.reduce, case.reduce_reason) == ("step", "2 hosts")
    assert in_words(case).endswith("gradients reduced each step (2 hosts)")
    flat = deepspeed_config(case, "cpu")["zero_optimization"]["flat_gradients"]
    assert flat == {"reduce": "step"}
    assert Case.from_dict(case.to_dict()) == case


def test_the_sums_must_fit() -> None:
    """The same case on the same hosts, with memory for the sums and without."""
    step = without_stages(64, 1)
    need = peak_bytes(step)
    each = peak_bytes(dataclasses.replace(step, reduce="micro_batch"))
    assert each < need
    assert without_stages(64, 1, int(need * 1.2)).reduce == "step"
    small = without_stages(64, 1, need)  # nothing over for CUDA and the allocator
    assert small.reduce == "micro_batch"
    assert in_words(small).endswith("micro-batch (8 hosts, but no memory for fp32 sums of a step)")


def test_micro_batch_is_no_remedy_where_its_messages_take_more() -> None:
    """Two copies of an expert: 4 / 2 bytes an element for the sums and 3 for the messages."""
    step = without_stages(16, 2)
    assert peak_bytes(dataclasses.replace(step, reduce="micro_batch")) > peak_bytes(step)
    assert without_stages(16, 2, peak_bytes(step) // 2).reduce == "step"


@pytest.mark.parametrize("reduce", ["step", "micro_batch"])
def test_a_user_s_word_is_kept(reduce: str) -> None:
    for per_host in (2, 4):
        case = chosen(4, "smoke", per_host, reduce=reduce)
        assert (case.reduce, case.reduce_reason) == (reduce, "")


def test_the_papers_suites_keep_what_was_published() -> None:
    for suite in ("artifact", "paper"):
        assert chosen(16, suite, 8).reduce is None
    assert chosen(16, "published", 8).reduce is None


@pytest.mark.parametrize(
    "changes", [{"zero_stage": 0}, {"flat_gradients": False}, {"pipeline_parallel_size": 2}]
)
def test_what_reduces_in_another_way_is_left_alone(changes: dict[str, object]) -> None:
    assert chosen(4, "smoke", 2, **changes).reduce is None


def test_a_data_type_goes_with_the_choice() -> None:
    case = chosen(4, "smoke", 2, reduce_dtype="int8", hierarchical=False)
    flat = deepspeed_config(case, "cpu")["zero_optimization"]["flat_gradients"]
    assert flat == {"reduce": "step", "dtype": "int8", "hierarchical": False}
    with pytest.raises(UsageError, match="expected --reduce step"):
        chosen(4, "smoke", 4, reduce_dtype="int8")
    with pytest.raises(UsageError, match="--no-hierarchical without --reduce step; expected both"):
        chosen(4, "smoke", 4, hierarchical=False)


def test_a_plan_of_a_model_knows_the_memory() -> None:
    roomy = case_of_model("10B", 16, Changes(), lambda processes: 8, 2**40)
    tight = case_of_model("70B", 64, Changes(), lambda processes: 8, 2**30)
    assert (roomy.reduce, tight.reduce) == ("step", "micro_batch")
