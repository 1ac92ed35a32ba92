"""Every epoch of the data loader of initialize(training_data=...) has the same order."""

import os
import sys

import deepspeed
import torch

os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29537")
deepspeed.init_distributed("gloo")
model = torch.nn.Linear(1, 1)
loader = deepspeed.initialize(
    model=model,
    optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
    config={"train_micro_batch_size_per_gpu": 4},
    training_data=torch.utils.data.TensorDataset(torch.arange(40.0)),
)[2]
epochs = [[int(value) for batch in loader for value in batch[0]] for _ in range(3)]
for number, epoch in enumerate(epochs):
    print(f"epoch {number} begins with the samples {epoch[:8]}")
found = len(set(map(tuple, epochs)))
print(f"{found} order(s) in three epochs; right: 3 (DistributedSampler.set_epoch is not called)")
sys.exit(0 if found == 3 else 1)
