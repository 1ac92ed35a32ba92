"""Where a DeepSpeed comes from: the release archive, or the package that pip installed."""
