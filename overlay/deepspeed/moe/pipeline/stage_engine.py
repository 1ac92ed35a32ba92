"""The engine of one stage: DeepSpeed's engine inside a stage, 1F1B between stages.

DeepSpeed's own ``PipelineEngine`` is not used: its sends and receives block, it knows no loss but
that of the last stage, no experts and no flat gradients, and it sums the gradients of tied copies
on every process. Here a stage is an ordinary engine over the stage's process groups, so that
masters, loss scaling, AdaFactor and ZeRO are those of a run without a pipeline; new are the order
of the passes (schedule.py), the messages (messages) and what must agree between stages
(stage_optimizer.py, tied.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.zero.flat_settings import FlatSettings, flat_settings
from torch import Tensor

from .checks import check_config, check_model, schedule_of
from .messages.overlapped import Messages
from .messages.transport import choose
from .schedule import FORWARD, one_forward_one_backward
from .stage_files import load_pipeline, save_pipeline
from .stage_groups import StageGroups
from .stage_model import StageModel, stage_param_groups
from .stage_optimizer import StageOptimizer


class StepLoss(NamedTuple):
    """This stage's part of a step's loss, each the mean over the step's micro-batches."""

    loss: Tensor
    cross_entropy: Tensor
    aux_loss: Tensor


class _StageUnit:
    """What DeepSpeed's configuration asks of an mpu: over how many processes a batch is spread."""

    def __init__(self, groups: StageGroups) -> None:
        self.groups = groups

    def get_data_parallel_world_size(self) -> int:
        return self.groups.width


class StageEngine(DeepSpeedEngine):
    """Trains ``model``, one stage, together with the engines of the other stages.

    Args:
        model: this process's stage.
        groups: what ``make_stage_groups`` made, before the model.
        config: a DeepSpeed configuration; its batch is over the processes of one stage.

    Raises:
        ValueError: for what a pipeline does not offer (checks.py).
    """

    def __init__(self, model: StageModel, groups: StageGroups, config: dict[str, Any]) -> None:
        # before torch's Module can keep attributes
        object.__setattr__(self, "stage_groups", groups)
        object.__setattr__(self, "doing", "at the start")
        check_config(config, groups.stages)
        object.__setattr__(self, "schedule", schedule_of(config))
        check_model(model.config, groups.stages)
        super().__init__(
            args=None, model=model, model_parameters=stage_param_groups(model), config=config
        )
        object.__setattr__(self, "transport", choose(groups, self.device))

    def _configure_with_arguments(self, args: Any, mpu: Any) -> None:
        super()._configure_with_arguments(args, _StageUnit(self.stage_groups))

    def zero_optimization(self) -> bool:
        """True at stage 0 too, whose optimizer is ZeRO's with one partition."""
        return True

    def zero_allow_untested_optimizer(self) -> bool:
        """At stage 0 every optimizer is taken, as without a pipeline."""
        return self.zero_optimization_stage() == 0 or super().zero_allow_untested_optimizer()

    def _configure_zero_optimizer(self, optimizer: Any) -> StageOptimizer:
        flat = flat_settings(self._config._param_dict)
        if flat is None or flat.reduce is None:  # in fp32, as ZeRO-1 does without a pipeline
            flat = FlatSettings("step", "fp32")
        experts = self.has_moe_layers
        return StageOptimizer(
            optimizer,
            groups=self.stage_groups,
            partitioned=self.zero_optimization_stage() == 1,
            flat=flat,
            timers=None,
            static_loss_scale=self.loss_scale(),
            dynamic_loss_scale=self.dynamic_loss_scale(),
            dynamic_loss_args=self.dynamic_loss_scale_args(),
            clip_grad=self.gradient_clipping(),
            contiguous_gradients=True,
            reduce_bucket_size=self.zero_reduce_bucket_size(),
            allgather_bucket_size=self.zero_allgather_bucket_size(),
            dp_process_group=self.data_parallel_group,
            expert_parallel_group=self.expert_parallel_group if experts else None,
            expert_data_parallel_group=self.expert_data_parallel_group if experts else None,
            reduce_scatter=True,
            overlap_comm=False,
            gradient_accumulation_steps=self.gradient_accumulation_steps(),
            partition_grads=False,
            has_moe_layers=experts,
        )

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Refused: a stage has no loss of its own."""
        raise RuntimeError("a pipeline takes whole steps; call train_step, or evaluate")

    def backward(self, loss: Any, **options: Any) -> Any:
        """Refused, as :meth:`forward`."""
        raise RuntimeError("a pipeline takes whole steps; call train_step")

    def train_step(self, tokens_AmS: Tensor, labels_AmS: Tensor) -> StepLoss:
        """One step: both passes of all micro-batches [A, m, S], then the optimizer.

        Every process of every stage calls it, with the micro-batches of its column. The loss of the
        step is the sum of all stages' parts, the mean over the columns.
        """
        count = self.gradient_accumulation_steps()
        if len(tokens_AmS) != count:
            raise ValueError(f"{len(tokens_AmS)} micro-batches; expected {count}")
        groups, model = self.stage_groups, self.module
        self.tput_timer.start()
        messages = self._messages(tokens_AmS, count)
        held: dict[int, tuple[Tensor, Tensor | None, Tensor]] = {}
        totals = torch.zeros(3, device=self.device)
        for kind, m in one_forward_one_backward(groups.stages, groups.stage, count, self.schedule):
            of = f"micro-batch {m + 1} of {count}"
            if kind == FORWARD:
                inputs = tokens_AmS[m]
                if not groups.first:
                    self._say(f"waits for the hidden states of {of} from stage {groups.stage}")
                    inputs = messages.receive_hidden().requires_grad_(True)
                self._say(f"forward pass of {of}")
                hidden, loss = model(inputs, labels_AmS[m] if groups.last else None)
                if hidden is not None:
                    messages.send_hidden(hidden)
                self._skipping.watch(loss)
                held[m] = (inputs, hidden, loss)
                stats = model.last_stats
                parts = torch.stack([loss.detach(), stats.cross_entropy, stats.aux_loss])
                totals += parts.to(totals.dtype) / count
            else:
                inputs, hidden, loss = held.pop(m)
                outputs = [loss / count] if loss.requires_grad else []
                gradients: list[Tensor | None] = [None] * len(outputs)
                if hidden is not None:
                    self._say(f"waits for the gradient of {of} from stage {groups.stage + 2}")
                    outputs.append(hidden)
                    gradients.append(messages.receive_gradient())
                self._say(f"backward pass of {of}")
                self.optimizer.is_gradient_accumulation_boundary = m == count - 1
                self.optimizer.backward_from(outputs, gradients)
                if not groups.first:
                    messages.send_gradient(inputs.grad)
        self._say("waits for its last messages to go")
        messages.finish()
        self._say("the step of the optimizer")
        self.micro_steps += count - 1
        self.step()
        self._say("between two steps")
        return StepLoss(*totals.unbind())

    def save_checkpoint(  # type: ignore[override]
        self,
        save_dir: Any,
        tag: Any = None,
        client_state: dict[str, Any] | None = None,
        save_latest: bool = True,
    ) -> bool:
        """Save this step as ``tag`` in ``save_dir``; every process calls it (stage_files.py)."""
        self._say("the checkpoint")
        save_pipeline(self, save_dir, tag, client_state or {}, save_latest)
        return True

    def load_checkpoint(  # type: ignore[override]
        self,
        load_dir: Any,
        tag: Any = None,
        load_optimizer_states: bool = True,
        load_lr_scheduler_states: bool = True,
        load_module_only: bool = False,
    ) -> tuple[str | None, Any]:
        """Load what a pipeline of any stages, experts and processes saved; folder, client_state.

        ``load_module_only``: the weights alone. (None, None) where there is no checkpoint. Raises
        RuntimeError for one of another kind, model or optimizer.
        """
        whole = not load_module_only
        return load_pipeline(
            self,
            load_dir,
            tag,
            optimizer=load_optimizer_states and whole,
            scheduler=load_lr_scheduler_states and whole,
        )

    def _say(self, words: str) -> None:
        """Keep what this process does now, for the message of one that fails or hangs."""
        self.doing = (
            f"in stage {self.stage_groups.stage + 1} of {self.stage_groups.stages}: {words}"
        )

    @torch.no_grad()
    def evaluate(self, tokens_BS: Tensor, labels_BS: Tensor) -> Tensor:
        """The cross-entropy of one batch, a scalar, in every process of the column.

        Call :meth:`eval` before and :meth:`train` after; every process of every stage calls it.
        """
        groups = self.stage_groups
        self._say("the evaluation")
        messages = self._messages(tokens_BS[None], 1, backward=False)
        inputs = tokens_BS if groups.first else messages.receive_hidden()
        hidden, _ = self.module(inputs, labels_BS if groups.last else None)
        if hidden is not None:
            messages.send_hidden(hidden)
        messages.finish()
        found = self.module.last_stats.cross_entropy.float().clone()
        dist.broadcast(found, groups.ranks[-1], group=groups.down)
        return found

    def _messages(self, tokens_AmS: Tensor, count: int, backward: bool = True) -> Messages:
        form = (*tokens_AmS.shape[1:], self.module.config.hidden_size)
        dtype = next(self.module.parameters()).dtype
        return Messages(
            self.stage_groups, self.transport, form, dtype, self.device, count, backward
        )
