"""neft: fine-tune language models with NEFTune, and find out whether it helped."""

from neftcli.version import VERSION

# With `python -m neftcli`, modules that are imported here may come from the current folder: not even `typing` is.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from neftcli.api import Run, evaluate, sweep_alpha, train
    from neftcli.neftune.callback import NeftuneCallback

__version__ = VERSION
__all__ = ["NeftuneCallback", "Run", "__version__", "evaluate", "sweep_alpha", "train"]


def __getattr__(name: str) -> object:
    """Import the Python interface when it is used, so that `neft --help` does not need it."""
    if name == "NeftuneCallback":
        from neftcli.neftune.callback import NeftuneCallback

        return NeftuneCallback
    if name in __all__:
        from neftcli import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
