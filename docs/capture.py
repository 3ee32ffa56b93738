"""Make docs/demo.svg: run `neft train` in a terminal (tmux) and save the final screen as SVG.

python docs/capture.py [--command "neft train"] [--width 100] [--height 60]
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

SESSION = "neft-capture"
DONE = "capture-is-done"


def tmux(*arguments: str) -> str:
    """Run a tmux command and return its output."""
    return subprocess.run(["tmux", *arguments], check=True, capture_output=True, text=True).stdout


def save_picture(screen: str, width: int, title: str, file: Path) -> None:
    """Write a screen with its escape sequences as SVG."""
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(screen))
    svg = console.export_svg(title=title)
    # Rich names fonts on a server; the picture should need no network.
    file.write_text(re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL), encoding="utf-8")


def main() -> None:
    """Run the command, wait for its end and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", default=f"{Path(sys.executable).parent / 'neft'} train")
    parser.add_argument("--title", default="neft train")
    parser.add_argument("--width", type=int, default=100)
    parser.add_argument("--height", type=int, default=60)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "demo.svg")
    options = parser.parse_args()
    size = ("-x", str(options.width), "-y", str(options.height))
    tmux("new-session", "-d", "-s", SESSION, *size, f"{options.command}; tmux wait-for -S {DONE}; sleep 60")
    try:
        tmux("wait-for", DONE)
        time.sleep(1)
        screen = tmux("capture-pane", "-e", "-p", "-t", SESSION).rstrip()
    finally:
        tmux("kill-session", "-t", SESSION)
    save_picture(screen, options.width, options.title, options.output)


if __name__ == "__main__":
    main()
