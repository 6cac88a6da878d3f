"""Triton kernels for CUDA: the only place that imports triton; `ops/cuda.py` does so on first use."""
