"""What the processes of the tests of the configuration do."""

from __future__ import annotations

from typing import Any

import deepspeed
import torch
from deepspeed.moe.lm import param_groups
from deepspeed.utils import logger

from support.scenarios import build, end, engine_config, full


def said_at_start(
    config: dict[str, Any], scenario: dict[str, Any], passed: bool = False
) -> list[str]:
    """The warnings on the configuration, and the error, of an engine with ``config`` laid over.

    ``passed``: an optimizer and a schedule are passed, too. Last comes the optimizer's class.
    """
    scenario = full(scenario)
    model = build(scenario)
    said: list[str] = []
    real, logger.warning = logger.warning, lambda text, *a, **k: said.append(str(text))
    options: dict[str, Any] = {}
    if passed:
        options["optimizer"] = torch.optim.SGD(model.parameters(), lr=0.1)
        options["lr_scheduler"] = torch.optim.lr_scheduler.StepLR(options["optimizer"], 1)
    else:
        options["model_parameters"] = param_groups(model)
    try:
        base = engine_config(scenario)
        merged = {k: v for k, v in {**base, **config}.items() if v != "absent"}
        engine, *_ = deepspeed.initialize(model=model, config=merged, **options)
        said.append(type(engine.basic_optimizer).__name__)
        end(engine)
    except (ValueError, TypeError) as error:
        said.append(f"{type(error).__name__}: {error}")
    finally:
        logger.warning = real
    return [text for text in said if "pin_memory" not in text and "untested" not in text]
