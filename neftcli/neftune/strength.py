"""Strength of the noise relative to the embeddings, at the input of the first layer.

Most models pass the embedding on unchanged. Some scale it before the noise is added (Gemma, so the noise is relatively
weaker) or after it (Granite, so noise and embedding grow together), and some project it (OPT-350m). So the strength is
measured instead of looked up.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neftcli.errors import NeftuneError
from neftcli.neftune.evaluation_mode import restore_modes
from neftcli.neftune.hooks import Noise
from neftcli.neftune.lengths import document_lengths

RATIO_TOLERANCE = 0.02
"""Relative deviation of a factor from 1 that is reported."""
USUAL_RATIO = 0.1
"""Noise relative to the embedding of alpha 5 in SmolLM2-135M: 0.099 on Alpaca-style rows (docs/lab-log.md)."""


@dataclass(frozen=True, slots=True)
class Strength:
    """Strength of the noise, from root mean squares (RMS) over the real tokens of one batch.

    Attributes:
        ratio: RMS of the noise / RMS of the embeddings without noise, both at the input of layer 0.
        embedding_scale: RMS of the embedding's output / RMS of its weight rows; not 1 if the architecture scales
            embeddings before the noise is added.
        layer_gain: RMS of the noise at layer 0 / RMS of the added noise; not 1 if the architecture scales afterwards.
        noise_rms: RMS of the added noise; alpha / sqrt(3 L d) for one document with uniform noise.
        table_rms: RMS of the embedding's weight rows; of its output if the weights are sharded over devices.
    """

    ratio: float
    embedding_scale: float
    layer_gain: float
    noise_rms: float
    table_rms: float

    @property
    def relative_to_llama(self) -> float:
        """`ratio` / (`noise_rms` / `table_rms`): the denominator is the ratio if layer 0 read the weight rows unscaled.

        This compares with LLaMA at the same alpha, length and width, for embedding tables of the same RMS. It is
        1 / sqrt(d) for Gemma, and 1 for Granite, which scales noise and embeddings together.
        """
        return self.ratio / (self.noise_rms / self.table_rms) if self.noise_rms else 1.0

    def usual_alpha(self, alpha: float) -> float:
        """Return the alpha that gives this model the `USUAL_RATIO`; the ratio is proportional to alpha.

        Args:
            alpha: The alpha of the measurement, not 0.
        """
        return alpha * USUAL_RATIO / self.ratio

    def warnings(self, alpha: float) -> list[str]:
        """List notices about noise above the embeddings, and about architectures that scale their embeddings.

        Args:
            alpha: The alpha of the measurement.
        """
        messages = []
        if self.ratio > 1:
            messages.append(
                f"the noise is stronger than the embeddings: {self.ratio:.3g} times their RMS at the input of layer 0, "
                f"so the model hardly recognises its tokens; alpha {self.usual_alpha(alpha):.2g} gives noise/embedding "
                f"{USUAL_RATIO:g}, as alpha 5 does in SmolLM2-135M"
            )
        scaled = []
        if abs(self.embedding_scale - 1) > RATIO_TOLERANCE:
            scaled.append(
                f"this architecture multiplies its embeddings by {self.embedding_scale:.3g} before the noise is added"
            )
        if abs(self.layer_gain - 1) > RATIO_TOLERANCE:
            scaled.append(
                f"this architecture scales or projects its embeddings after the noise is added, which multiplies the "
                f"noise by {self.layer_gain:.3g}"
            )
        if scaled:
            messages.append(f"{'; '.join(scaled)}: {self._comparison(alpha)}")
        return messages

    def _comparison(self, alpha: float) -> str:
        """Compare the strength with LLaMA's in a sentence."""
        relative = self.relative_to_llama
        llama = "in a model that passes its embeddings on unscaled, such as LLaMA (same alpha, length and width)"
        if abs(relative - 1) <= RATIO_TOLERANCE:
            return f"relative to the embeddings, the noise is as strong as {llama}"
        return (
            f"relative to the embeddings, the noise is {relative:.3g} times as strong as {llama}; "
            f"use alpha {alpha / relative:.3g} for the strength of alpha {alpha:g} there"
        )


class _LayerReached(Exception):  # noqa: N818 - stops the forward pass at layer 0; not an error
    pass


@torch.no_grad()
def measure_strength(model: nn.Module, batch: Mapping[str, Any], noise: Noise) -> Strength:
    """Measure the noise by running `batch` up to the first layer, without and with noise.

    Args:
        model: The model that `noise` is attached to.
        batch: Keyword arguments of its forward pass, on its device.
        noise: The `Noise` that `neftune(...)` yielded; its state is not changed.

    Raises:
        NeftuneError: The model's layers can't be found.
    """
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    layer = _first_layer(model)
    token_ids = batch["input_ids"]
    lengths = document_lengths(
        tuple(token_ids.shape), batch.get("attention_mask"), batch.get("position_ids"), batch.get("cu_seq_lens_q")
    )
    real = lengths > 0
    with restore_modes(model):
        model.eval()
        clean_embedding, clean = _run_to_layer(model, batch, embedding, layer)
        with noise.force():
            noised_embedding, noised = _run_to_layer(model, batch, embedding, layer)
    table = _embedding_table(embedding)
    embedding_rms = rms(clean_embedding[real])
    table_rms = embedding_rms if table is None else rms(nn.functional.embedding(token_ids, table)[real].float())
    added = rms((noised_embedding - clean_embedding)[real])
    at_layer = rms((noised - clean)[real])
    return Strength(
        ratio=at_layer / rms(clean[real]),
        embedding_scale=embedding_rms / table_rms,
        layer_gain=at_layer / added if added else 1.0,
        noise_rms=added,
        table_rms=table_rms,
    )


def rms(values: Float[Tensor, "..."]) -> float:
    """Compute the root mean square, in float64."""
    return float(values.cpu().double().square().mean().sqrt())


def _run_to_layer(
    model: nn.Module, batch: Mapping[str, Any], embedding: nn.Module, layer: nn.Module
) -> tuple[Tensor, Tensor]:
    """Return the embedding's output and the layer's input, (batch, time, width) in float32."""
    tensors: dict[str, Tensor] = {}

    def record_embedding(_module: nn.Module, _args: Any, output: Tensor) -> None:
        tensors["embedding"] = output.float()

    def record_layer(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors["layer"] = (args[0] if args else kwargs["hidden_states"]).float()
        raise _LayerReached

    handles = [
        embedding.register_forward_hook(record_embedding),
        layer.register_forward_pre_hook(record_layer, with_kwargs=True),
    ]
    try:
        model(**{key: value for key, value in batch.items() if key != "labels"}, use_cache=False)
    except _LayerReached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return tensors["embedding"], tensors["layer"]


def _first_layer(model: nn.Module) -> nn.Module:
    """Find the first layer: that of a module list as long as the configuration says.

    Raises:
        NeftuneError: There is no such list.
    """
    count = model.config.get_text_config().num_hidden_layers  # type: ignore[union-attr,operator]
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module[0]
    raise NeftuneError(f"{type(model).__name__} has no module list of {count} layers (its num_hidden_layers)")


def _embedding_table(embedding: nn.Module) -> Tensor | None:
    """Return the weights (vocab_size, width) of an embedding with or without adapters; None if they are sharded."""
    for module in embedding.modules():
        if isinstance(module, nn.Embedding):
            return module.weight if type(module.weight.data) is Tensor else None
    return None
