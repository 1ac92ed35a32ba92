"""zero_to_fp32.py fails on a checkpoint of a model with experts."""

import os
import subprocess
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
engine.save_checkpoint(folder[0], tag="one")
torch.distributed.barrier()
command = [sys.executable, f"{folder[0]}/zero_to_fp32.py", folder[0], f"{folder[0]}/{os.getpid()}"]
run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
print(f"zero_to_fp32.py: exit code {run.returncode}, last line: {run.stdout.splitlines()[-1]}")
print("right: exit code 0 and a file with the weights of both experts")
sys.exit(1 if run.returncode else 0)
