"""client_state={"module": ...} replaces the weights in the checkpoint."""

import os
import sys
import tempfile

import deepspeed
import torch

os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29552")
deepspeed.init_distributed("gloo")
model = torch.nn.Linear(1, 1, bias=False)
torch.nn.init.constant_(model.weight, 1.0)
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
config = {"train_micro_batch_size_per_gpu": 1}
engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
folder = tempfile.mkdtemp()
print("right: save_checkpoint refuses the key, or load_checkpoint restores the weight 1.0")
try:
    engine.save_checkpoint(folder, tag="one", client_state={"module": "resnet"})
except Exception as error:
    print(f"saving: {type(error).__name__}: {error}")
    sys.exit(0)
torch.nn.init.constant_(model.weight, 5.0)
try:
    engine.load_checkpoint(folder, tag="one")
    found = model.weight.item()
except Exception as error:
    found = f"{type(error).__name__}: {error}"
print("saved without an error; loading:", found)
sys.exit(0 if found == 1.0 else 1)
