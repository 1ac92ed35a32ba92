"""A scheduler of torch that the configuration names is a TypeError under ZeRO."""

import os
import sys

import deepspeed
import torch

os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29531")
deepspeed.init_distributed("gloo")
model = torch.nn.Linear(1, 1, bias=False)
config = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 1},
    "zero_allow_untested_optimizer": True,
    "scheduler": {"type": "StepLR", "params": {"step_size": 1, "gamma": 0.5}},
}
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
try:
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
    for _ in range(2):
        engine.backward(engine(torch.ones(1, 1)).sum())
        engine.step()
    found = engine.get_lr()[0]
except TypeError as error:
    found = f"TypeError: {error}"
print("rate after two steps:", found)
print("right: 0.125, as without ZeRO")
sys.exit(0 if found == 0.125 else 1)
