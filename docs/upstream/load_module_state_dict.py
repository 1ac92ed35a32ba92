"""After load_module_state_dict under ZeRO the first step uses the old weights."""

import os
import sys

import deepspeed
import torch

os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29533")
deepspeed.init_distributed("gloo")
model = torch.nn.Linear(1, 1, bias=False)
torch.nn.init.constant_(model.weight, 5.0)
config = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 1},
    "zero_allow_untested_optimizer": True,
}
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
engine.load_module_state_dict({"module": {"weight": torch.ones(1, 1)}})
loaded = engine.module.weight.item()
engine.backward(engine(torch.ones(1, 1)).sum())  # the gradient is 1, the step 0.5
engine.step()
found = engine.module.weight.item()
print(f"weight {loaded} after loading, {found} after a step of 0.5")
print("right: 1.0 after loading, 0.5 after the step (it began at 5.0)")
sys.exit(0 if (loaded, found) == (1.0, 0.5) else 1)
