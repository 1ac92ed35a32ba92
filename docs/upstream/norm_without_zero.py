"""get_global_grad_norm() is None in fp32 without ZeRO, though the norm was used to clip."""

import os
import sys

import deepspeed
import torch

os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29536")
deepspeed.init_distributed("gloo")
found = {}
for stage in (0, 1):
    model = torch.nn.Linear(2, 1, bias=False)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 1.0,
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
    engine.backward(engine(torch.tensor([[3.0, 4.0]])).sum())  # the gradient is (3, 4)
    engine.step()
    norm = engine.get_global_grad_norm()
    found[stage] = None if norm is None else round(float(norm), 4)
print("get_global_grad_norm() by ZeRO stage:", found)
print("right: 5.0 in both, the norm of the gradient (3, 4)")
sys.exit(0 if found[0] == 5.0 else 1)
