"""The benchmark: suites, text data, result rows, FLOP formulas, the table after a run."""
