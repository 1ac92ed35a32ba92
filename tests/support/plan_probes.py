"""What the processes of the plan's tests do: train steps for real and measure what it predicts."""

from __future__ import annotations

from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.moe.lm import MoELM, param_groups
from deepspeed.utils import groups

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.train.start import model_config
from support.scenarios import end, end_groups


def measured_steps(pairs: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Bytes at the peak of the second of two real steps, and bytes sent, of each case.

    A pair is a case and its DeepSpeed configuration.
    """
    return [_measured(Case.from_dict(values), config) for values, config in pairs]


def _measured(case: Case, config: dict[str, Any]) -> dict[str, Any]:
    # the plan's alone: torch 1.10, on which every other scenario runs, has no TorchDispatchMode
    from dsmoe.benchmark.plan.ledger import Ledger

    end_groups()
    groups.initialize(ep_size=dist.get_world_size())
    torch.manual_seed(0)
    ledger = Ledger()
    with ledger:
        model = MoELM(model_config(case))
        engine, *_ = deepspeed.initialize(
            model=model, model_parameters=param_groups(model), config=config
        )
        shape = (2, case.micro_batch_size, case.model.sequence_length)
        for _ in range(2):
            ledger.restart()
            for _ in range(case.micro_batches):
                tokens = torch.randint(0, case.model.vocab_size, shape)
                loss = engine(tokens[0], tokens[1])
                engine.backward(loss)
                engine.step()
                del loss, tokens
    found = {"peak": ledger.peak, "sent": dict(ledger.sent)}
    end(engine)
    return found
