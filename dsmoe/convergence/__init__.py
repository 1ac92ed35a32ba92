"""Does the model learn? The MoE model against a dense one of equal FLOPs; docs/convergence.md."""
