"""The cases are the artifact's, the parameter count is a real model's, bad cases are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dsmoe.benchmark.cases.case import ModelCase, Parallel
from dsmoe.benchmark.cases.suites import MODELS, SUITES, find_case
from dsmoe.common.errors import UsageError

# GPUs, model, H, L, E, micro-batches, expert parallel size: the artifact's script.
ARTIFACT = [
    (1, "380M", 768, 8, 8, 128, 1),
    (4, "1.3B", 768, 16, 16, 32, 4),
    (8, "2.4B", 1024, 16, 16, 16, 2),
    (16, "4.5B", 1024, 16, 32, 8, 8),
    (32, "10B", 1536, 16, 32, 8, 8),
]
FIGURE = {1: "380M", 2: "690M", 4: "1.3B", 8: "2.4B", 16: "10B", 32: "27B", 64: "70B"}


def test_the_artifact_suite_is_the_script_s_table() -> None:
    rows = []
    for case in SUITES["artifact"]:
        model, parallel = case.model, case.parallel
        sizes = (model.name, model.hidden_size, model.num_layers, model.num_experts)
        rows.append(
            (parallel.processes, *sizes, case.micro_batches, parallel.expert_parallel_size),
        )
        common = (
            model.sequence_length,
            model.vocab_size,
            model.num_heads,
            model.ffn_multiplier,
            model.top_k,
        )
        assert common == (1024, 32000, 16, 8, 2)
        assert (case.global_batch_size, case.min_capacity, parallel.zero_stage) == (1024, 4, 2)
        assert (case.precision, case.loss_scale, case.remat) == ("fp16", 1.0, True)
    assert rows == ARTIFACT


def test_the_paper_suite_has_the_seven_points_of_the_figure() -> None:
    points = {case.parallel.processes: case.model.name for case in SUITES["paper"]}
    assert points == FIGURE
    chosen = [c.parallel.processes for c in SUITES["paper"] if "not given" in c.source]
    assert chosen == [2, 64]
    assert all(case.source for cases in SUITES.values() for case in cases)


def test_smoke_trains_on_the_same_global_batch_for_every_number_of_processes() -> None:
    first, *others = SUITES["smoke"]
    for case in others:
        free = {"parallel": first.parallel, "micro_batches": first.micro_batches}
        assert replace(case, **free) == first


@pytest.mark.parametrize("name", MODELS)
def test_parameter_count_is_that_of_a_model_built_from_layers(name: str) -> None:
    torch = pytest.importorskip("torch")
    nn, model = torch.nn, MODELS[name]
    h, wide = model.hidden_size, model.hidden_size * model.ffn_multiplier

    def ffn():
        return nn.Sequential(nn.Linear(h, wide), nn.Linear(wide, h))

    def layer(mixture: bool):
        attention = nn.MultiheadAttention(h, model.num_heads)
        # Experts are counted, not built: 128 of them on 16 layers would be 2,048 modules.
        blocks = [nn.Linear(h, model.num_experts, bias=False)] if mixture else []
        return nn.ModuleList([nn.LayerNorm(h), attention, nn.LayerNorm(h), ffn(), *blocks])

    def count(module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    with torch.device("meta"):
        embeddings = [nn.Embedding(model.vocab_size, h), nn.Embedding(model.sequence_length, h)]
        parts = nn.ModuleList([*embeddings, nn.LayerNorm(h)])
        parts.extend(layer(index % 2 == 1) for index in range(model.num_layers))
        more_experts = model.num_layers // 2 * (model.num_experts - 1) * count(ffn())
    assert model.parameter_count == count(parts) + more_experts
    named = float(name[:-1]) * {"M": 1e6, "B": 1e9}[name[-1]]
    assert model.parameter_count == pytest.approx(named, rel=0.04)


def test_lookup_lists_what_there_is() -> None:
    assert find_case("artifact", 8).model is MODELS["2.4B"]
    with pytest.raises(UsageError, match="no case for 3 GPUs; it has 1, 4, 8, 16, 32"):
        find_case("artifact", 3)
    with pytest.raises(UsageError, match="'nope': expected one of artifact, paper, smoke, tuned"):
        find_case("nope", 1)


def test_micro_batches_make_the_global_batch() -> None:
    for case in (case for cases in SUITES.values() for case in cases):
        in_a_micro_batch = case.micro_batch_size * case.parallel.data_parallel_size
        assert in_a_micro_batch * case.micro_batches == case.global_batch_size


def test_scaled_has_the_models_and_batches_of_the_paper() -> None:
    for case, paper in zip(SUITES["scaled"], SUITES["paper"]):
        parallel = replace(
            paper.parallel,
            expert_parallel_size=case.parallel.expert_parallel_size,
            pipeline_parallel_size=case.parallel.pipeline_parallel_size,
            zero_stage=case.parallel.zero_stage,
            pipeline_schedule=case.parallel.pipeline_schedule,
        )
        chosen = ("micro_batches", "remat", "reduce", "cuda_graph", "suite", "source")
        settings = {name: getattr(case, name) for name in chosen}
        assert replace(paper, parallel=parallel, **settings) == case
    assert len(SUITES["scaled"]) == len(SUITES["paper"])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"micro_batches": 3}, "do not divide the global batch"),
        ({"micro_batches": 0}, "do not divide the global batch"),
        ({"parallel": lambda: Parallel(16, 16), "micro_batches": 64}, "does not divide 8 experts"),
        ({"parallel": lambda: Parallel(4, 3)}, "does not divide 4 processes"),
        ({"parallel": lambda: Parallel(1, zero_stage=3)}, "ZeRO stage 3"),
        ({"parallel": lambda: Parallel(0)}, "0 processes"),
        ({"model": lambda: ModelCase("odd", 768, 7, 8)}, "expected an even number"),
        ({"model": lambda: ModelCase("heads", 760, 8, 8)}, "num_heads 16 does not divide"),
        ({"model": lambda: ModelCase("one", 768, 8, 1)}, "expected at least 2 experts"),
        ({"model": lambda: ModelCase("none", 768, 8, 8, vocab_size=0)}, "vocab_size is 0"),
        ({"precision": "fp4"}, "'fp4', expected one of fp32, fp16, bf16"),
        ({"second_expert_policy": "none"}, "expected one of all, random, sampling"),
        ({"iterations": 0}, "no iteration"),
        ({"seed": -1}, "seed -1 is negative"),
    ],
)
def test_impossible_cases_are_refused(change, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        made = {key: value() if callable(value) else value for key, value in change.items()}
        replace(find_case("artifact", 1), **made)
