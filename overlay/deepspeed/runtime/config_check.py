"""Refuse a configuration whose keys or names would be passed over, warn of what has no effect.

A key that nothing reads is refused where it is nearly one that is known, or stands in a section
whose keys are all known; elsewhere in the top level it is warned about, since programs keep
settings of their own there. A key that the rest of the configuration leaves without effect is
warned about where it asks for something. config_keys.py is the table.
"""

from __future__ import annotations

import difflib
from typing import Any, Callable

import torch
from deepspeed.runtime.lr_schedules import VALID_LR_SCHEDULES
from deepspeed.utils import logger

from .config_keys import KEYS, NEEDS

_ZERO = "zero_optimization"
# Sections that may also be true or false.
_EITHER = (_ZERO, "zero_optimization.flat_gradients")
_MUST_SAY = ("amp.", "progressive_layer_drop.", "curriculum_learning.")


def check_keys(config: dict[str, Any], rank: int = 0) -> None:
    """Check the keys of ``config``; ``rank`` 0 warns.

    Raises:
        ValueError: for an unknown key, with its place and the nearest known one; for a section
            that is no mapping; for a ZeRO stage that is none.
    """
    _check_section(config, "", rank)
    verify = _given(config, "checkpoint.verify")
    if verify is not _ABSENT and not isinstance(verify, bool):
        raise ValueError(f"configuration: checkpoint.verify is {verify!r}, expected true or false")
    state = _State(config)
    if rank:
        return
    for key, default, _, needs in KEYS:
        given = _given(config, key)
        if not needs or given is _ABSENT or given == default or _switched_off(config, key):
            continue
        if not HOLDS[needs](state):
            logger.warning(
                f"configuration: {key} is {given!r} and has no effect; it needs {NEEDS[needs]}"
            )


def check_names(config: dict[str, Any], optimizers: list[str]) -> None:
    """Check ``optimizer.type`` and ``scheduler.type``, by DeepSpeed's own names and torch's.

    Raises:
        ValueError: for a section without a type, and a name that is no class, with the nearest.
    """
    classes = {
        "optimizer": (optimizers, torch.optim, torch.optim.Optimizer),
        "scheduler": (VALID_LR_SCHEDULES, torch.optim.lr_scheduler, _schedules()),
    }
    for section, (own, module, base) in classes.items():
        if not config.get(section):
            continue
        name = config[section].get("type")
        theirs = [n for n, found in vars(module).items() if n[0] != "_" and _is_class(found, base)]
        fits = name in own + theirs or (section == "optimizer" and str(name).lower() in own)
        if not fits:
            near = _nearest(str(name), own + theirs)
            raise ValueError(
                f"configuration: {section}.type is {name!r}, expected {', '.join(own)} or a class"
                f" of {module.__name__}{near}"
            )


def settled_optimizer(config: dict[str, Any], name: str) -> str:
    """``name``, or torch's class where DeepSpeed's branch of that name makes another optimizer.

    Raises ValueError for adamw with ``adam_w_mode: false``.
    """
    section = config["optimizer"]
    params = section.get("params") or {}
    if name == "adamw" and params.get("adam_w_mode") is False:
        raise ValueError(
            "configuration: optimizer.type is AdamW with adam_w_mode false, expected one of the"
            " two: write Adam, or leave adam_w_mode out"
        )
    if name == "adam" and params.get("weight_decay") and "adam_w_mode" not in params:
        logger.warning(
            "configuration: optimizer.type Adam decays weights as AdamW does (adam_w_mode is true"
            " unless it is given); set optimizer.params.adam_w_mode to say which"
        )
    if name != "adagrad":
        return name
    offload = _State(config).offloads and torch.cuda.is_available()
    return name if offload else "Adagrad"  # else the branch of Adam would make AdamW


def warn_of_overrides(engine: Any, scheduler: Any) -> None:
    """Say which of two optimizers or schedules is used where configuration and arguments give one.

    ``scheduler`` is the argument of ``deepspeed.initialize``.
    """
    name = engine._config.optimizer_name
    if engine.client_optimizer is not None and name is not None:
        logger.warning(
            f"configuration: optimizer {name!r} is not used, since an optimizer was passed"
        )
    name = engine.scheduler_name()
    if scheduler is not None and name is not None:
        logger.warning(
            f"configuration: scheduler {name!r} is used, and the lr_scheduler that was"
            " passed is not"
        )


class _State:
    """What the conditions of ``NEEDS`` ask of a configuration."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        zero = config.get(_ZERO) or {}
        self.former = isinstance(zero, bool)
        self.zero = {"stage": int(zero)} if isinstance(zero, bool) else zero
        self.stage = self.zero.get("stage", 0)
        if not isinstance(self.stage, int) or not 0 <= self.stage <= 3:
            raise ValueError(
                f"configuration: zero_optimization.stage is {self.stage!r}, expected 0, 1, 2 or 3"
            )
        flat = self.zero.get("flat_gradients")
        self.flat = bool(flat)
        self.reduce = flat.get("reduce") if isinstance(flat, dict) else None
        self.legacy = self.stage == 1 and bool(self.zero.get("legacy_stage1"))
        self.fp16 = self.on("fp16")
        self.dynamic = self.fp16 and not config["fp16"].get("loss_scale", 0)
        self.offloads = bool(self.zero.get("cpu_offload") or self.zero.get("offload_optimizer"))

    def on(self, section: str) -> bool:
        return bool((self.config.get(section) or {}).get("enabled"))


Condition = Callable[[_State], bool]
#: Whether a configuration has what a key needs, by the names of config_keys.NEEDS.
HOLDS: dict[str, Condition] = {
    "never": lambda s: False,
    "zero": lambda s: s.stage > 0,
    "stage 0": lambda s: s.stage == 0,
    "stage 1": lambda s: s.stage == 1,
    "stage 1 or 2": lambda s: s.stage in (1, 2),
    "stage 3": lambda s: s.stage == 3,
    "stage 2 own": lambda s: s.stage == 2 and not s.flat,
    "stage 2 fp16": lambda s: s.stage == 2 and s.fp16,
    "stage 2": lambda s: s.stage == 2,
    "stage 2 or 3 own": lambda s: s.stage in (2, 3) and not s.flat,
    "flat": lambda s: s.reduce is not None,
    "flat step": lambda s: s.reduce == "step",
    "buckets": lambda s: s.stage in (1, 2) and not s.flat,
    "any buckets": lambda s: s.stage > 0 and not s.flat,
    "legacy_stage1": lambda s: s.legacy,
    "own reduction": lambda s: not s.flat,
    "former format": lambda s: s.former,
    "fp16": lambda s: s.fp16,
    "fp16 alone": lambda s: s.fp16 and s.stage == 0,
    "dynamic scale": lambda s: s.dynamic,
    "tensorboard": lambda s: s.on("tensorboard"),
    "flops_profiler": lambda s: s.on("flops_profiler"),
}
_ABSENT = object()


def _given(config: dict[str, Any], key: str) -> Any:
    """The value at the dotted ``key``, or _ABSENT."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return _ABSENT
        value = value[part]
    return value


def _switched_off(config: dict[str, Any], key: str) -> bool:
    """Whether the section of ``key`` says that it is off; then nothing is asked for."""
    return _given(config, key.rpartition(".")[0] + ".enabled") is False


def _below(front: str) -> dict[str, bool]:
    """The keys of the section ``front`` ("" or "a.b."): whether each is a section."""
    rest = [key[len(front) :] for key, *_ in KEYS if key.startswith(front)]
    return {key.split(".")[0]: "." in key for key in rest}


def _check_section(section: dict[str, Any], front: str, rank: int) -> None:
    known = _below(front)
    if front in _MUST_SAY and "enabled" not in section:
        raise ValueError(f"configuration: {front}enabled is missing, expected true or false")
    for key, value in section.items():
        if key in known:
            if known[key] and isinstance(value, dict):
                _check_section(value, f"{front}{key}.", rank)
            elif known[key] and value is not None and front + key not in _EITHER:
                raise ValueError(
                    f"configuration: {front}{key} is {value!r}, expected a mapping of"
                    f" {', '.join(_below(f'{front}{key}.'))}"
                )
            continue
        if "*" in known:
            continue
        near = _nearest(key, list(known), front)
        elsewhere = [k for k, *_ in KEYS if k.split(".")[-1] == key]
        if not near and elsewhere:
            near = f"; did you mean {elsewhere[0]}?"
        if front or near:
            raise ValueError(
                f"configuration: {front}{key} is no key that this engine knows{near}"
                " (docs/reference/configuration.md lists all)"
            )
        if rank == 0:
            logger.warning(f"configuration: {key} is no key that this engine knows; it is ignored")


def _nearest(name: str, known: list[str], front: str = "") -> str:
    lower = {k.lower(): k for k in known}
    found = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.7)
    return f"; did you mean {front}{lower[found[0]]}?" if found else ""


def _is_class(found: Any, base: Any) -> bool:
    bases = base if isinstance(base, tuple) else (base,)
    return isinstance(found, type) and issubclass(found, bases) and found not in bases[:1]


def _schedules() -> tuple[type, ...]:
    """torch's base classes of schedules, of which ReduceLROnPlateau was none before 2.2."""
    module = torch.optim.lr_scheduler
    base = getattr(module, "LRScheduler", None) or module._LRScheduler
    return (base, module.ReduceLROnPlateau)
