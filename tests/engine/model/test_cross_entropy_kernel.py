"""The cross-entropy kernel in Triton's interpreter, where Triton is installed; on GPUs see
test_fused.py."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs Triton, which torch for the CPU does not bring", allow_module_level=True)

# A process of its own: Triton reads the variable when it is imported.
PROGRAM = """
import importlib.util, sys
import torch
spec = importlib.util.spec_from_file_location("kernel", sys.argv[1])
kernel = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernel)
torch.manual_seed(0)
for vocabulary in (100, 8192, 20000):
    logits = 4 * torch.randn(6, vocabulary)
    logits[1, :9000][: vocabulary // 2] = -torch.inf  # a whole first block at 20000
    labels = torch.tensor([3, vocabulary - 1, -100, vocabulary // 2, vocabulary - 2, 0])
    exact = logits.double().requires_grad_()
    right = torch.nn.functional.cross_entropy(exact, labels, reduction="none")
    right.sum().backward()
    gradient = logits.clone()
    losses = kernel.cross_entropy_(gradient, labels, 2.0)
    torch.testing.assert_close(losses.double(), right.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double() / 2, exact.grad, rtol=1e-5, atol=1e-6)
for bad in (100, -5):
    logits = torch.randn(1, 100)
    assert kernel.cross_entropy_(logits, torch.tensor([bad]), 1.0).isnan().all()
for value in (torch.inf, torch.nan):
    logits = torch.randn(1, 100)
    logits[0, 7] = value
    assert not kernel.cross_entropy_(logits, torch.tensor([3]), 1.0).isfinite().any()
print("equal")
"""


def test_losses_and_gradients_equal_torch() -> None:
    import deepspeed.moe.kernels

    folder = deepspeed.moe.kernels.__path__[0]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, f"{folder}/cross_entropy.py"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "equal\n", done.stdout + done.stderr
