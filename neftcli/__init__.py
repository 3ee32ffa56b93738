"""neft: fine-tune language models with NEFTune, and learn with evidence whether it helped."""

__version__ = "0.1.0"
