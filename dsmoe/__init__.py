"""DeepSpeed's MoE baseline of the Alpa paper, as a patch-set overlay on a pinned DeepSpeed."""

__version__ = "0.2.0"
