"""GShard's MoE layer: router, routing, dispatch, experts, all-to-all."""
