"""Device and precision of a run.

Oracle: the table of cases below.
"""

from __future__ import annotations

import pytest
import torch

from neftcli.system import device


@pytest.mark.parametrize(
    ("precision", "weights", "frozen_weights", "bfloat16", "weights_dtype"),
    [
        ("float32", "auto", False, False, torch.float32),
        ("bfloat16", "auto", False, True, torch.float32),
        ("bfloat16", "bfloat16", False, True, torch.bfloat16),
        ("bfloat16", "auto", True, True, torch.float32),
    ],
)
def test_resolve_compute_config_on_a_cpu(
    precision: device.Precision,
    weights: device.Precision,
    frozen_weights: bool,
    bfloat16: bool,
    weights_dtype: torch.dtype,
) -> None:
    compute = device.resolve_compute_config(precision, weights, frozen_weights=frozen_weights)
    assert (compute.device, compute.bfloat16, compute.weights_dtype) == ("cpu", bfloat16, weights_dtype)


def test_autocast_computes_in_the_chosen_precision() -> None:
    float32 = device.resolve_compute_config("float32", "auto", frozen_weights=False)
    bfloat16 = device.resolve_compute_config("bfloat16", "auto", frozen_weights=False)
    for compute, expected in ((float32, torch.float32), (bfloat16, torch.bfloat16)):
        with compute.autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("expected scalar type Float but found BFloat16"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_is_out_of_memory(error: Exception, expected: bool) -> None:
    assert device.is_out_of_memory(error) is expected


def test_is_out_of_memory_of_the_cpu_allocator() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert device.is_out_of_memory(raised.value)


def test_deterministic_operations_reject_put_on_gpus_only() -> None:
    """Torch rejects `put_` on every device, so the test needs no GPU."""
    import torch._inductor.config as compiler

    target, places, values = torch.zeros(4), torch.tensor([1, 1]), torch.ones(2)
    with device.deterministic_operations("cuda"):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        with pytest.raises(RuntimeError, match=device.NO_DETERMINISTIC_VARIANT):
            target.put_(places, values)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert not compiler.deterministic
    with device.deterministic_operations("cpu"):
        target.put_(places, values)
