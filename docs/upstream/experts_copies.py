"""Experts of one process start as copies; experts of two processes do not."""

import os
import sys

import deepspeed
import torch
from deepspeed.moe.layer import MoE

os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29513")
deepspeed.init_distributed("gloo")
layer = MoE(hidden_size=4, expert=torch.nn.Linear(4, 4), num_experts=3, k=1)
named = layer.named_parameters()
weights = [p for name, p in named if "experts" in name and name.endswith("weight")]
found = [float((a - b).detach().abs().max()) for a, b in zip(weights, weights[1:])]
lives = min(found) == 0
print("largest difference between neighbouring experts:", found)
print("right: more than 0, as with ep_size=3, where each process draws weights of its own")
sys.exit(1 if lives else 0)
