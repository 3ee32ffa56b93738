"""NEFTune (Jain et al., ICLR 2024, arXiv 2310.05914): noise on the token embeddings during fine-tuning.

    from neftcli.neftune import neftune

    with neftune(trainer.model, alpha=5.0):
        trainer.train()

`noise.py` is the mathematics, `lengths.py` tells how long each document of a batch is, `attachment.py` puts the noise
on a model and takes it off again, `pairing.py` shows every row twice for symmetric noise, and `strength.py` measures
how strong the noise is where the first layer sees it.
"""

from neftcli.neftune.hooks import Noise, neftune
from neftcli.neftune.lengths import document_lengths
from neftcli.neftune.strength import Strength, measure_strength
from neftcli.neftune.symmetric import paired

__all__ = ["Noise", "Strength", "document_lengths", "measure_strength", "neftune", "paired"]
