"""Feed-forward layers and experts with products in FP8 (``MoELMConfig.fp8``).

Forward and both backward products take operands in e4m3; sums are in fp32, results in bf16. The
router, attention, layer norms, the output layer, master weights and sums of gradients are as in
bf16; so are evaluation and generation.

Files, in the order of a pass:

* quantise.py: scales, and a tensor in FP8 in two layouts
* feed_forward.py: the layer and its gradients
* operators.py: the four products as operators, and their formulas in torch
* hopper.py: the same by quack-kernels

A scale is a power of two from an upper bound of the tensor at hand, so there is no history of
scales: nothing to save in a checkpoint, and nothing can overflow.

Shape suffixes: E experts (1 for a dense layer), R rows, M model width, H hidden width; in a product
A and B rows of its operands, K the width of the sum.
"""
