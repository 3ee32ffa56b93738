"""Fused operations for training: the mathematics, on the devices where they are faster."""
