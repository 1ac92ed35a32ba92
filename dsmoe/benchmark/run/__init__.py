"""One case from the text to its row: folder, launcher, processes, progress, reasons."""
