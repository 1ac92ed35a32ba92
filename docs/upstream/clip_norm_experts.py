"""gradient_clipping without ZeRO averages the norms of processes with different experts."""

import sys

import deepspeed
import torch
from deepspeed.moe.layer import MoE


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = torch.nn.Linear(4, 4)
        self.moe = MoE(4, torch.nn.Linear(4, 4), num_experts=2, ep_size=2, capacity_factor=2.0)

    def forward(self, x):
        return self.moe(self.dense(x))[0]


deepspeed.init_distributed("gloo")
rank = torch.distributed.get_rank()
torch.manual_seed(0)  # the same dense weights in both processes
model = Net()
torch.manual_seed(rank)  # data of its own
data = 10 * torch.randn(1, 8, 4) if rank else torch.randn(1, 8, 4)
config = {"train_micro_batch_size_per_gpu": 1, "gradient_clipping": 0.01}
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
before = [p.detach().clone() for p in model.parameters()]
engine.backward(engine(data).pow(2).sum())
engine.step()
squares = torch.zeros(2)  # of the update, which is the clipped gradient: dense, experts
for old, (name, new) in zip(before, model.named_parameters()):
    squares[int("experts" in name)] += (new.detach() - old).pow(2).sum()
torch.distributed.all_reduce(squares[1:])  # each process has one of the two experts
found = float(squares.sum().sqrt())
print(f"norm of the clipped gradient of the whole model: {found:.5f}")
print("right: 0.01000, as configured")
sys.exit(1 if abs(found - 0.01) > 1e-4 else 0)
