"""When a dynamic loss scale grows, ZeRO divides that step's gradients by the new scale."""

import os
import sys

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator

os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
os.environ["MASTER_PORT"] = "29528"
get_accelerator().is_fp16_supported = lambda: True  # also on a CPU that is slow at it
deepspeed.init_distributed(get_accelerator().communication_backend_name())
model = torch.nn.Linear(4, 1, bias=False)
torch.nn.init.zeros_(model.weight)
config = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 1},
    "zero_allow_untested_optimizer": True,
    "fp16": {"enabled": True, "initial_scale_power": 4, "loss_scale_window": 1},
}
sgd = torch.optim.SGD(model.parameters(), lr=0.5)
engine = deepspeed.initialize(model=model, optimizer=sgd, config=config)[0]
weights = [0.0]
x = torch.ones(4).half().to(engine.device)
for _ in range(4):  # the gradient is 1, and the scale doubles at every step
    engine.backward(engine(x).float().sum())
    engine.step()
    weights.append(model.weight[0, 0].item())
found = [before - after for before, after in zip(weights, weights[1:])]
print("steps of", found, "\nright: four steps of 0.5")
sys.exit(0 if found == [0.5] * 4 else 1)
