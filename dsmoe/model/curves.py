"""The curves of a training as event files for TensorBoard, all on one axis: iterations."""

from __future__ import annotations

from typing import Any

from deepspeed.utils.tensorboard import SummaryWriter


class Curves:
    """Writes to ``folder``; None: nothing. ``first`` iterations were done before: what an earlier
    run wrote after them is taken back."""

    def __init__(self, folder: str | None, first: int) -> None:
        self._writer: Any = SummaryWriter(folder, purge_step=first + 1) if folder else None

    def iteration(
        self, line: dict[str, Any], rate: float, tokens: int, routing: dict[str, list[Any]]
    ) -> None:
        """One line of ``iterations.jsonl``; ``routing`` has a list by layer under each name."""
        values = {
            "loss/train": line["cross_entropy"],
            "loss/balance": line["aux_loss"],
            "learning_rate": rate,
            "tokens_per_second": tokens / line["seconds"],
        }
        for layer, (load, dropped) in enumerate(
            zip(routing.get("load", []), routing.get("dropped", []))
        ):
            values[f"dropped_share/layer_{layer}"] = dropped
            for expert, share in enumerate(load):
                values[f"expert_load/layer_{layer}/expert_{expert}"] = share
        self._add(values, line["iteration"])

    def held_out(self, iteration: int, loss: float | None) -> None:
        """The held-out loss after ``iteration``; None where no text is held out."""
        if loss is not None:
            self._add({"loss/held_out": loss}, iteration)

    def _add(self, values: dict[str, float], iteration: int) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, iteration)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
