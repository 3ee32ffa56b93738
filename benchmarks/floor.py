"""How near an update comes to the time of its matrix products alone, at this machine's measured rate.

    python benchmarks/floor.py --tokens 2048

Times every product that an update of SmolLM2-135M (full) needs, forward and both of its gradients, in the arithmetic
that neft chooses, as torch does them one after the other; then some updates of `neft train` on as many tokens, all of
them with loss. Attention's own products are not among them, so the ratio is a little pessimistic.
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
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    options = parser.parse_args()
    model = model_folder("smollm2-135m")
    floor, flops = products(model, options.tokens)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _, rate = train(folder, "floor", model, long_rows(folder), options.tokens // LENGTH, LENGTH)
    update = options.tokens / rate
    print(f"products alone  {floor:.2f} s an update of {options.tokens} tokens, {flops / floor / 1e9:.0f} GFLOP/s")
    print(f"neft train      {update:.2f} s, {rate:.0f} tokens/s")
    print(f"share           {floor / update:.0%}")


def products(folder: Path, tokens: int) -> tuple[float, float]:
    """Seconds and floating-point operations of an update's matrix products."""
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
    """Seconds of a product, the shortest of some."""
    times = []
    for _ in range(RUNS):
        begun = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - begun)
    return min(times)


if __name__ == "__main__":
    main()
