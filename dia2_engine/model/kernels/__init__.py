"""Kernels for the GPU, in Triton's language: each does what the plain modules of `dia2_engine.model` do, fused.

Their plain twins are those modules; `tests/gpu/test_kernels.py` holds the two against each other. Nothing here is
imported on a machine without a GPU.
"""
