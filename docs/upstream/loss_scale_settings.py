"""Loading a checkpoint under ZeRO replaces the loss scale that the configuration asks for."""

import os
import sys
import tempfile

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator

os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29532")
get_accelerator().is_fp16_supported = lambda: True  # also on a CPU that is slow at it
deepspeed.init_distributed(get_accelerator().communication_backend_name())


def start(scale):
    model = torch.nn.Linear(2, 2, bias=False)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
        "fp16": {"enabled": True, "loss_scale": scale},
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


folder = tempfile.mkdtemp()
engine = start(16)
engine.backward(engine(torch.ones(1, 2).half().to(engine.device)).float().sum())
engine.step()
engine.save_checkpoint(folder, tag="one")
engine = start(64)
engine.load_checkpoint(folder, tag="one")
found = engine.optimizer.loss_scale
print(f"loss scale {found}; the configuration says 64, the saved run had 16")
print("right: 64")
sys.exit(0 if found == 64 else 1)
