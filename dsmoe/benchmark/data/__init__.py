"""From text to batches: files, tokenizer, indexed data set, windows."""
