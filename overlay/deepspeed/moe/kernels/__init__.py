"""What makes the model fast, one backend a file; policy.py says which one computes what.

Operators that layers call in a compiled region: feed_forward.py (with gelu_product.py), linear.py,
causal_attention.py, output_loss.py, exchanged_experts.py. Backends behind them: hopper_products.py
(quack), hopper_attention.py (flash-attn), cublaslt.py, cross_entropy.py (Triton), copy_engines.py.
ahead.py compiles the libraries' kernels while a run starts; verify.py compares a backend's first
results with torch's; choices.py has the values of ``DSMOE_KERNELS``.
"""
