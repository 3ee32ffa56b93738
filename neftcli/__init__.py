"""neft: fine-tune language models with NEFTune, and find out whether it helped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from neftcli.version import VERSION

if TYPE_CHECKING:
    from neftcli.api import Run, evaluate, sweep_alpha, train
    from neftcli.neftune.callback import NeftuneCallback

__version__ = VERSION
__all__ = ["NeftuneCallback", "Run", "__version__", "evaluate", "sweep_alpha", "train"]


def __getattr__(name: str) -> Any:
    """Import the Python interface when it is used, so that `neft --help` does not need it."""
    if name == "NeftuneCallback":
        from neftcli.neftune.callback import NeftuneCallback

        return NeftuneCallback
    if name in __all__:
        from neftcli import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
