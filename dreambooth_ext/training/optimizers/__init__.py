"""Optimizers that fit: arithmetic in fp32 a piece at a time, state and weights as small as asked for."""
