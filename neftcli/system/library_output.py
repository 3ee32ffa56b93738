"""What the libraries say: their progress bars stay off, and what they log and warn of goes to the run's log."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neftcli.system.files import open_without_links

LIBRARIES = ("transformers", "datasets", "trl", "peft", "accelerate", "huggingface_hub", "torch", "bitsandbytes")


@contextmanager
def library_chatter(log: Path, *, loaded: bool = True) -> Iterator[None]:
    """Sends what the libraries log and warn of to `log`, and switches their progress bars off.

    Args:
        log: The file.
        loaded: Load the libraries now, so that their own handlers are there to be taken away.
    """
    file = open_without_links(log, "a", errors="backslashreplace")
    handler = logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    logging.captureWarnings(True)
    quieted = _quiet_libraries() if loaded else []
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        handler.close()
        file.close()
        for logger, handlers, propagate in quieted:
            logger.handlers, logger.propagate = handlers, propagate


def _quiet_libraries() -> list[Any]:
    """Takes the libraries' own handlers away, so that the root's is the only one."""
    import datasets
    import transformers

    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    changed = []
    for name in LIBRARIES:
        logger = logging.getLogger(name)
        changed.append((logger, logger.handlers[:], logger.propagate))
        logger.handlers, logger.propagate = [], True
    return changed
