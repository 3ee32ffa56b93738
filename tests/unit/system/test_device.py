"""Types and settings that a run takes from the compute.

Oracle: the table of cases below.
"""

from __future__ import annotations

import pytest
import torch

from neftcli.recipe.loading import assignment, load_recipe
from neftcli.system import device


@pytest.mark.parametrize(
    ("sets", "bfloat16", "weights"),
    [
        (["training.precision=float32"], False, torch.float32),
        (["training.precision=bfloat16"], True, torch.float32),
        (["training.precision=bfloat16", "model.dtype=bfloat16"], True, torch.bfloat16),
        (["training.precision=bfloat16", "adapter.type=lora"], True, torch.float32),
    ],
)
def test_types_on_a_cpu(sets: list[str], bfloat16: bool, weights: torch.dtype) -> None:
    chosen = device.resolve_compute_config(load_recipe("quickstart", [assignment(text) for text in sets]))
    assert (chosen.device, chosen.bfloat16, chosen.weights_dtype) == ("cpu", bfloat16, weights)


def test_autocast_computes_in_the_chosen_type() -> None:
    for precision, expected in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        chosen = device.resolve_compute_config(
            load_recipe("quickstart", [assignment(f"training.precision={precision}")])
        )
        with chosen.autocast():
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
def test_what_counts_as_out_of_memory(error: Exception, expected: bool) -> None:
    assert device.is_out_of_memory(error) is expected


def test_the_allocator_of_a_cpu_says_it_in_these_words() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert device.is_out_of_memory(raised.value)


def test_operations_that_can_not_be_repeated_are_refused_on_a_gpu_alone() -> None:
    """Torch refuses `put_` on every device, so that no GPU is needed to see it."""
    import torch._inductor.config as compiler

    target, places, values = torch.zeros(4), torch.tensor([1, 1]), torch.ones(2)
    with device.reproducible("cuda"):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        with pytest.raises(RuntimeError, match=device.NO_VARIANT):
            target.put_(places, values)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert not compiler.deterministic
    with device.reproducible("cpu"):
        target.put_(places, values)
