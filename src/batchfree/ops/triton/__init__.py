"""Triton kernels for CUDA: the one place that imports triton; `ops/cuda.py` does so when needed."""
