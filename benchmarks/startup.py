"""Measure how long the command line takes to answer, compared with the imports that it needs.

    python benchmarks/startup.py [--runs 7]

The commands alternate; the table shows medians and ratios, since absolute times depend on the machine.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "import typer, rich": [sys.executable, "-c", "import typer, rich"],
    "neft --help": [sys.executable, "-m", "neftcli", "--help"],
    "neft train --help": [sys.executable, "-m", "neftcli", "train", "--help"],
    "neft train --alpha five": [sys.executable, "-m", "neftcli", "train", "--alpha", "five"],
    "trl sft --help": [sys.executable, "-c", "from trl.cli import main; main()", "sft", "--help"],
}


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(options.runs):
        for name, command in COMMANDS.items():
            begun = time.perf_counter()
            subprocess.run(command, capture_output=True, check=False)
            seconds[name].append(time.perf_counter() - begun)
    base = statistics.median(seconds["import typer, rich"])
    print("| command | median, s | / import typer, rich |\n|---|---:|---:|")
    for name, values in seconds.items():
        print(f"| `{name}` | {statistics.median(values):.2f} | {statistics.median(values) / base:.1f} |")


if __name__ == "__main__":
    main()
