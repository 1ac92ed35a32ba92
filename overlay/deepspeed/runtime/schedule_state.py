"""What a schedule of the learning rate does to the optimizer when a checkpoint is loaded.

The rate of the next step stands in the optimizer's parameter groups; a scheduler only writes it
there when it steps. Where the groups come from the checkpoint, all is well. Where they do not, the
rate must follow from the scheduler's own state, or the first steps use another one (torch's
schedulers multiply what they find, so they would keep the wrong factor for ever).
"""

from __future__ import annotations

from typing import Any

#: Entries of a parameter group that a scheduler owns.
_OWNED = ("lr", "initial_lr", "min_lr", "max_lr", "base_momentum", "max_momentum")


def apply(scheduler: Any) -> None:
    """Write the rate (and momentum) of ``scheduler``'s state to its optimizer.

    Called after ``scheduler.load_state_dict``. A scheduler that has not stepped, or that keeps its
    last rate under no known name, changes nothing.
    """
    groups = scheduler.optimizer.param_groups if hasattr(scheduler, "optimizer") else []
    started = getattr(scheduler, "last_batch_iteration", None)
    if started is None or not hasattr(scheduler, "get_lr"):
        rates = getattr(scheduler, "_last_lr", None)
    else:
        rates = scheduler.get_lr()
    known = isinstance(rates, (list, tuple)) and len(rates) == len(groups)
    if known and (started is None or started >= 0):
        _write(scheduler, rates)


def _write(scheduler: Any, rates: list[Any]) -> None:
    groups = scheduler.optimizer.param_groups
    for group, rate in zip(groups, rates):
        group["lr"] = rate
    scheduler._last_lr = list(rates)
    if getattr(scheduler, "cycle_momentum", False) and hasattr(scheduler, "get_mom"):
        for group, momentum in zip(groups, scheduler.get_mom()):
            group["betas"] = momentum


def start(scheduler: Any) -> None:
    """Write the rate (and momentum) of the first step to the optimizer of a new ``scheduler``.

    DeepSpeed's schedulers wrote them at their first step, after the optimizer's: the first step
    had the rate of the optimizer, and OneCycle's the momentum of the other end of the cycle.
    """
    _write(scheduler, scheduler.get_lr())


def before_loading(engine: Any, load_scheduler: bool) -> list[dict[str, Any]] | None:
    """The rates of a scheduler that will not be loaded; None where it will, or there is none."""
    if load_scheduler or engine.lr_scheduler is None or engine.optimizer is None:
        return None
    return [{k: g[k] for k in _OWNED if k in g} for g in engine.optimizer.param_groups]


def after_loading(engine: Any, rates: list[dict[str, Any]] | None) -> None:
    """Finish what ``engine.load_checkpoint`` restored.

    A scheduler that was not loaded begins anew: its ``rates`` (of :func:`before_loading`) replace
    those of the checkpoint's groups. Progressive layer drop gets the share of the last step.
    """
    if rates is not None:
        for group, values in zip(engine.optimizer.param_groups, rates):
            group.update(values)
    if engine.progressive_layer_drop is not None and engine.global_steps > 0:
        engine.progressive_layer_drop.update_state(engine.global_steps - 1)
