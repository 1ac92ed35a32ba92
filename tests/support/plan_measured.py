"""One process that trains two steps of each case for real and measures what the plan predicts.

``python plan_measured.py FILE``: FILE holds [[case, DeepSpeed configuration], …] as JSON; a line
of JSON for each is printed by rank 0. Started once a rank with RANK, WORLD_SIZE and so on set.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.moe.lm import MoELM, param_groups
from deepspeed.utils import groups

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.plan.ledger import Ledger
from dsmoe.benchmark.train.start import model_config


def measure(case: Case, config: dict) -> dict:
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
    return {"peak": ledger.peak, "sent": ledger.sent}


deepspeed.init_distributed(dist_backend="gloo", verbose=False)
groups.initialize(ep_size=dist.get_world_size())
for case, config in json.loads(Path(sys.argv[1]).read_text()):
    found = measure(Case.from_dict(case), config)
    if dist.get_rank() == 0:
        print("measured " + json.dumps(found), flush=True)
dist.barrier()
sys.stdout.flush()
os._exit(0)
