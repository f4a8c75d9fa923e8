"""Kernels of our own, in Triton's language: in one pass over memory they do what takes torch's operations many."""
