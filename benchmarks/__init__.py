"""Timings of the layers against their peers, measured in the same run."""
