"""The MoE model against a dense one of equal FLOPs a token; docs/guide/convergence.md."""
