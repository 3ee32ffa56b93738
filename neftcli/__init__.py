"""neft: fine-tune language models with NEFTune, and find out whether it helped."""

__version__ = "0.1.0"
