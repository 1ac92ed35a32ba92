"""Experts on packed rows: the filled slots of all experts one behind the other, without the empty.

With a capacity factor of 1, as many slots stay empty as choices are dropped: at the start of a
training 14 % or more. On padded rows ([E, R, M], gshard/dispatch.py) the products compute them too.
Here every product takes the first row of each expert, which only the device knows; shapes stay
fixed, so nothing waits for the device, also in a CUDA graph.

Files, in the order of a pass:

* feed_forward.py: the experts and their gradients
* operators.py: the four products as operators for torch.compile, and their formulas in torch

The products are quack's (kernels/hopper_products.py); policy.packs_rows says when. On other GPUs,
in FP8, and where tokens are exchanged between processes, rows are padded.

Shape suffixes: E experts, E1 one more, R packed rows of all experts (and empty ones behind them), M
model width, H hidden width; in a product K the width of the sum, N that of the result.
"""
