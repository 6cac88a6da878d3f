"""The talk's claims, the sweeps that test them, the results file. Needs `batchfree[train]`."""
