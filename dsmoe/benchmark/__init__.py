"""The benchmark: cases, data, the run, the training process, results, checks, plan, timing."""
