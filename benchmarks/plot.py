"""Plot the tokens per second of whole commands for docs/benchmarks.md, from the lines of `training.py --results`.

python benchmarks/plot.py docs/benchmarks.jsonl docs/benchmarks.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

NAMES = {
    "neft": "neft train",
    "neft-small": "neft train,\nmemory given back",
    "trl-best": "trl sft,\nbest flags",
    "script": "plain\nSFTTrainer script",
    "soup": "soup train",
    "trl": "trl sft --use_cpu",
}
OURS, OTHERS = "#0072B2", "0.65"


def main() -> None:
    """Draw a panel for each method."""
    source, target = map(Path, sys.argv[1:])
    results = {line["method"]: line for line in map(json.loads, source.read_text().splitlines())}  # the last of each
    plt.rcParams.update({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "neft"})
    figure, panels = plt.subplots(1, len(results), figsize=(7.1, 2.6), squeeze=False, layout="constrained")
    for panel, (method, result) in zip(panels[0], results.items(), strict=True):
        found = {name: result["contenders"][name] for name in reversed(NAMES) if name in result["contenders"]}
        rates = [row["tokens_per_second"] for row in found.values()]
        colours = [OURS if name.startswith("neft") else OTHERS for name in found]
        bars = panel.barh([NAMES[name] for name in found], rates, color=colours)
        panel.bar_label(bars, [f"{rate:.0f}" for rate in rates], padding=2)
        panel.set_title({"full": "full", "lora": "LoRA", "qlora": "QLoRA"}[method], loc="left")
        panel.set_xlim(0, 1.2 * max(rates))
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("real tokens a second, whole command")
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main()
