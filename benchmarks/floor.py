"""Compare a step with the time of its matrix products alone, at the rate measured on this machine.

    python benchmarks/floor.py --tokens 2048

Times every product that a step of SmolLM2-135M (full) needs, forward and for both gradients, in the precision that neft
chooses, computed by torch one after the other; then some steps of `neft train` on the same number of tokens, all with
loss. The products of attention are not included, so the ratio is slightly pessimistic.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from commands import model_folder
from sizes import long_rows, train

LENGTH = 256
RUNS = 5


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    options = parser.parse_args()
    model = model_folder("smollm2-135m")
    floor, flops = products(model, options.tokens)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _, rate = train(folder, "floor", model, long_rows(folder), options.tokens // LENGTH, LENGTH)
    step = options.tokens / rate
    print(f"products alone  {floor:.2f} s per step of {options.tokens} tokens, {flops / floor / 1e9:.0f} GFLOP/s")
    print(f"neft train      {step:.2f} s, {rate:.0f} tokens/s")
    print(f"share           {floor / step:.0%}")


def products(folder: Path, tokens: int) -> tuple[float, float]:
    """Return the seconds and the floating-point operations of a step's matrix products."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from neftcli.system.device import has_bfloat16

    kind = torch.bfloat16 if has_bfloat16("cpu") else torch.float32
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    shapes: dict[tuple[int, int], int] = {}
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            shape = (module.in_features, module.out_features)
            shapes[shape] = shapes.get(shape, 0) + 1
    seconds = flops = 0.0
    for (inner, outer), count in shapes.items():
        x, w = torch.randn(tokens, inner, dtype=kind), torch.randn(outer, inner, dtype=kind)
        y = torch.randn(tokens, outer, dtype=kind)
        # The output, then the gradients of the input and of the weight.
        seconds += count * (best(x, w.T) + best(y, w) + best(y.T, x))
        flops += count * 6 * tokens * inner * outer
    return seconds, flops


def best(left: torch.Tensor, right: torch.Tensor) -> float:
    """Return the shortest time of a product in RUNS repetitions, in seconds."""
    times = []
    for _ in range(RUNS):
        begun = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - begun)
    return min(times)


if __name__ == "__main__":
    main()
