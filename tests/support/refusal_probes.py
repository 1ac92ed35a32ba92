"""What the processes of the tests of refusals do."""

from __future__ import annotations

from typing import Any

from deepspeed.utils import logger

from support.scenarios import end, full, start_engine, train_steps


def save_once(scenario: dict[str, Any], folder: str, options: dict[str, Any]) -> None:
    """A checkpoint of one step; ``options`` are of save_checkpoint."""
    engine = start_engine(full(scenario))
    train_steps(engine, full(scenario), 0, 1)
    engine.save_checkpoint(folder, **options)
    end(engine)


def load_result(scenario: dict[str, Any], folder: str, options: dict[str, Any]) -> list[str]:
    """The error of load_checkpoint, or what it returns; and the warnings before it."""
    engine = start_engine(full(scenario))
    said: list[str] = []
    real, logger.warning = logger.warning, lambda text, *a, **k: said.append(str(text))
    try:
        path, state = engine.load_checkpoint(folder, **options)
        result = f"loaded {path is not None} {state is not None}"
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    finally:
        logger.warning = real
        end(engine)
    return [result, *said]
