"""NEFTune (Jain et al., ICLR 2024, arXiv 2310.05914): noise on the token embeddings during fine-tuning.

    from neftcli.neftune import neftune

    with neftune(trainer.model, alpha=5.0):
        trainer.train()

- `noise.py`: the formulas, as pure functions.
- `lengths.py`: the length of each document of a batch.
- `hooks.py`: attach the noise to a model, and remove it again.
- `symmetric.py`: batches with every row twice, for symmetric noise.
- `strength.py`: measure the noise relative to the embeddings at the input of the first layer.
- `evaluation_mode.py`: evaluation without dropout and without noise.
"""

from neftcli.neftune.hooks import Noise, neftune
from neftcli.neftune.lengths import document_lengths
from neftcli.neftune.strength import Strength, measure_strength
from neftcli.neftune.symmetric import paired

__all__ = ["Noise", "Strength", "document_lengths", "measure_strength", "neftune", "paired"]
