"""The commands that run experiments and write reports; `batchfree.cli` dispatches to them."""
