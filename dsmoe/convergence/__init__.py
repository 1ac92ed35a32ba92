"""Does the model learn? The MoE model against a dense one of equal FLOPs; docs/guide/convergence.md."""
