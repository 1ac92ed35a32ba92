"""Cases as data: the type, the suites, FLOP formulas, the DeepSpeed configuration."""
