"""Triton kernels for GPUs, which may have rows of any width, and their PyTorch operators with gradients and shapes."""
