"""save_16bit_model writes the experts of one process alone."""

import sys
import tempfile

import deepspeed
import torch
from deepspeed.moe.layer import MoE
from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.moe = MoE(4, torch.nn.Linear(4, 4), num_experts=2, ep_size=2)

    def forward(self, x):
        return self.moe(x)[0]


deepspeed.init_distributed("gloo")
model = Net()
config = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 2},
    "zero_allow_untested_optimizer": True,
}
every = {"params": list(model.parameters()), "name": "all"}
groups = split_params_into_different_moe_groups_for_optimizer(every)
optimizer = torch.optim.SGD(groups, lr=1.0)
engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
folder = [tempfile.mkdtemp()]
torch.distributed.broadcast_object_list(folder)
engine.save_16bit_model(folder[0], "model.bin")
torch.distributed.barrier()
found = [name for name in torch.load(f"{folder[0]}/model.bin") if "experts" in name]
print(f"{len(found)} tensors of experts in the file: {found}")
print("right: 4, weight and bias of two experts (or a refusal)")
sys.exit(0 if len(found) == 4 else 1)
