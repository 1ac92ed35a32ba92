"""Messages between the stages of a pipeline on two GPUs, by every transport."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        torch.cuda.device_count() < 2, reason=f"{torch.cuda.device_count()} CUDA devices, 2 needed"
    ),
]
COUNT = 40


def on_a_gpu(stage: int, folder: str) -> None:
    import torch.distributed as dist
    from deepspeed.moe.kernels import policy
    from deepspeed.moe.pipeline import make_stage_groups
    from deepspeed.moe.pipeline.messages import transport
    from deepspeed.moe.pipeline.messages.overlapped import Messages
    from deepspeed.moe.pipeline.schedule import FORWARD, one_forward_one_backward

    torch.cuda.set_device(stage)
    dist.init_process_group("nccl", init_method=f"file://{folder}/store", rank=stage, world_size=2)
    policy.use(policy.KernelPolicy(policy.Libraries(copy_engines=True)))
    device = torch.device("cuda", stage)
    groups = make_stage_groups(2)
    chosen = transport.choose(groups, device)
    kinds: dict[str, Any] = {
        "copy engines": chosen,
        "gloo": transport.HostTransport(groups, device),
        "nccl": transport.GroupTransport(groups, device),
    }
    wrong: list[tuple[str, int, int]] = []
    load = torch.randn(2048, 2048, device=device)

    def value(size: int, m: int) -> torch.Tensor:
        return torch.full((size,), float(m), device=device, dtype=torch.bfloat16) + 0 * load[0, 0]

    def check(name: str, found: torch.Tensor, m: int) -> None:
        for _ in range(m % 3):
            load @ load  # one side is late now and then
        if not torch.equal(found, value(len(found), m)):
            wrong.append((name, len(found), m))

    check("before", value(8, 1), 1)  # a kernel's first use waits for the whole device
    for name, kind in kinds.items():
        for size in (1, 1000, 3_000_000):  # larger ones need a larger inbox
            messages = Messages(groups, kind, (size,), torch.bfloat16, device, COUNT)
            for what, m in one_forward_one_backward(2, stage, COUNT, "eager"):
                if what == FORWARD and stage == 0:
                    messages.send_hidden(value(size, m))
                elif what == FORWARD:
                    check(name, messages.receive_hidden(), m)
                elif stage == 0:
                    check(name, messages.receive_gradient(), m)
                else:
                    messages.send_gradient(value(size, m))
            messages.finish()
            torch.cuda.synchronize()
    torch.save((chosen.name, [k.name for k in kinds.values()], wrong), f"{folder}/{stage}.pt")
    dist.destroy_process_group()


def test_every_message_arrives_as_it_was_sent(tmp_path: Path) -> None:
    mp.spawn(on_a_gpu, args=(str(tmp_path),), nprocs=2)
    for stage in range(2):
        chosen, names, wrong = torch.load(tmp_path / f"{stage}.pt")
        assert chosen == "copy engines"
        assert names == ["copy engines", "gloo", "nccl"]
        assert wrong == []
