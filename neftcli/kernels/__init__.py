"""Fused operations for training and evaluation, each with its backward pass where it has one.

- `attention.py`: causal attention within each document of a padding-free row, on CPUs and GPUs.
- `lora.py`: a frozen linear layer with its LoRA adapter.
- `cross_entropy.py`: the output layer and its cross-entropy loss, only at the labels.

docs/kernels.md gives the formulas, when each kernel is used, what it saves and how to switch it off.
"""
