"""What the processes of the resume tests do: every step's rate, loss scale and loss, both ways."""

from __future__ import annotations

from typing import Any

from support.scenarios import build, end, full, start_engine, train_steps, whole_weights


def loss_scale(engine: Any) -> float:
    """The present loss scale; 1 for an optimizer that has none."""
    return float(getattr(engine.optimizer, "cur_scale", 1.0))


def settings(engine: Any) -> list[dict[str, Any]]:
    """Everything in the parameter groups but the parameters."""
    groups = engine.optimizer.param_groups
    return [{k: v for k, v in group.items() if k != "params"} for group in groups]


def traced(engine: Any, scenario: dict[str, Any], first: int, last: int) -> dict[str, Any]:
    """Steps ``first`` to ``last`` - 1: what the optimizer used at each, and the final weights."""
    trace: dict[str, Any] = {"rates": [], "scales": [], "losses": [], "groups": []}
    for step in range(first, last):
        trace["rates"].append(engine.get_lr())
        trace["groups"].append(settings(engine))
        trace["scales"].append(loss_scale(engine))
        trace["losses"] += train_steps(engine, scenario, step, step + 1)["losses"]
    trace["skipped"] = engine.skipped_steps
    trace["weights"] = whole_weights(engine.module)
    return trace


def save_and_resume_traced(
    cases: list[dict[str, Any]], folder: str, half: int
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """For each case: the trace after a checkpoint of step ``half``, uninterrupted and resumed.

    A case is a scenario with, under "resume", configuration that only the resumed run has, and,
    under "load", arguments of its load_checkpoint. The resumed model starts from other weights.
    """
    return [_both(case, f"{folder}/{number}", half) for number, case in enumerate(cases)]


def _both(case: dict[str, Any], folder: str, half: int) -> tuple[dict[str, Any], dict[str, Any]]:
    scenario = full(case)
    engine = start_engine(scenario)
    train_steps(engine, scenario, 0, half)
    engine.save_checkpoint(folder, tag="half")
    expected = traced(engine, scenario, half, scenario["steps"])
    end(engine)
    config = {**scenario["config"], **case.get("resume", {})}
    other = build({**scenario, "seed": 99})
    engine = start_engine({**scenario, "config": config}, other)
    engine.load_checkpoint(folder, tag="half", **case.get("load", {}))
    found = traced(engine, scenario, half, scenario["steps"])
    end(engine)
    return expected, found


def last_rates(case: dict[str, Any], folder: str) -> list[Any]:
    """``get_last_lr()`` of the scheduler after two steps, and right after a resume."""
    scenario = full(case)
    engine = start_engine(scenario)
    train_steps(engine, scenario, 0, 2)
    engine.save_checkpoint(folder, tag="two")
    result = [engine.lr_scheduler.get_last_lr()]
    end(engine)
    engine = start_engine(scenario)
    engine.load_checkpoint(folder, tag="two")
    result.append(engine.lr_scheduler.get_last_lr())
    end(engine)
    return result
