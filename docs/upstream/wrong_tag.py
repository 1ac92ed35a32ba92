"""load_checkpoint with a tag that does not exist is an AssertionError without a text."""

import os
import sys
import tempfile

import deepspeed
import torch

os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29554")
deepspeed.init_distributed("gloo")
model = torch.nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
config = {"train_micro_batch_size_per_gpu": 1}
engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
folder = tempfile.mkdtemp()
engine.save_checkpoint(folder, tag="one")
try:
    found = f"no error; it returned {engine.load_checkpoint(folder, tag='eleven')}"
except Exception as error:
    found = f"{type(error).__name__}: {error}"
print("loading the tag eleven:", found)
print("right: an error that names the tag, or the folder in which it was looked for")
sys.exit(0 if "eleven" in found and "no error" not in found else 1)
