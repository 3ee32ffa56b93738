"""How strong the noise is where it matters: at the input of the first layer.

Most models hand the embedding on as it is. Some scale it, before the noise (Gemma: the noise is relatively weaker) or
behind it (Granite: weaker or stronger together), and some project it (OPT-350m). Measured, not looked up.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neftcli.errors import NeftuneError
from neftcli.neftune.hooks import Noise
from neftcli.neftune.lengths import document_lengths

TOLERANCE = 0.02


@dataclass(frozen=True, slots=True)
class Strength:
    """Noise against signal, as root mean squares over the real tokens of one batch.

    Attributes:
        ratio: RMS of the noise over RMS of the signal, at the input of layer 0.
        embedding_scale: RMS of the embedding's output over RMS of its weights' rows; not 1 where the architecture
            multiplies before the noise is added.
        layer_gain: RMS of the noise at layer 0 over RMS of the noise as added; not 1 where it multiplies behind.
        noise_rms: RMS of the noise as added, alpha / sqrt(3 L d) for one document with uniform noise.
        table_rms: RMS of the embedding's weights' rows; of its output if the weights are sharded over devices.
    """

    ratio: float
    embedding_scale: float
    layer_gain: float
    noise_rms: float
    table_rms: float

    def relative(self) -> float:
        """Noise against signal at layer 0, over what it would be if layer 0 read the embedding's rows as they are.

        LLaMA does, so this is the strength relative to LLaMA's at the same alpha, length and width, for tables of the
        same RMS: 1 / sqrt(d) with Gemma, 1 with Granite, which multiplies noise and signal together.
        """
        return self.ratio / (self.noise_rms / self.table_rms) if self.noise_rms else 1.0

    def warnings(self, alpha: float) -> list[str]:
        """Notices about architectures for which an alpha from the paper doesn't carry over.

        Args:
            alpha: The alpha of the measurement.
        """
        relative = self.relative()
        there = "a model that reads its embeddings as they are, as LLaMA does (same alpha, length and width)"
        if abs(relative - 1) <= TOLERANCE:
            compared = f"against the signal the noise is as strong as in {there}"
        else:
            compared = (
                f"against the signal the noise is {relative:.3g} times what it is in {there}: "
                f"alpha {alpha / relative:.3g} is as strong here as alpha {alpha:g} there"
            )
        messages = []
        if abs(self.embedding_scale - 1) > TOLERANCE:
            messages.append(
                f"this architecture multiplies its embeddings by {self.embedding_scale:.3g} before the noise is added"
            )
        if abs(self.layer_gain - 1) > TOLERANCE:
            messages.append(
                f"this architecture multiplies the noise by {self.layer_gain:.3g} on its way to layer 0 "
                "(the embedding is rescaled or projected after it)"
            )
        return [f"{'; '.join(messages)}: {compared}"] if messages else []


class _Reached(Exception):  # noqa: N818 - not an error: layer 0 has been reached and the rest isn't needed
    pass


@torch.no_grad()
def measure_strength(model: nn.Module, batch: Mapping[str, Any], noise: Noise) -> Strength:
    """Runs the embedding of `batch` twice, without and with noise, up to the first layer.

    Args:
        model: The model that `noise` is attached to.
        batch: Keyword arguments of its forward pass, on its device.
        noise: What `neftune(...)` yielded; its state is left as it was.

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
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        clean_embedding, clean = _run(model, batch, embedding, layer)
        with noise.force():
            noised_embedding, noised = _run(model, batch, embedding, layer)
    finally:
        for module, training in modes:
            module.training = training
    table = _weight(embedding)
    weights = None if table is None else nn.functional.embedding(token_ids, table)
    embedded = rms(clean_embedding[real])
    table_rms = embedded if weights is None else rms(weights[real].float())
    added = rms((noised_embedding - clean_embedding)[real])
    arrived = rms((noised - clean)[real])
    return Strength(
        ratio=arrived / rms(clean[real]),
        embedding_scale=embedded / table_rms,
        layer_gain=arrived / added if added else 1.0,
        noise_rms=added,
        table_rms=table_rms,
    )


def rms(values: Float[Tensor, "..."]) -> float:
    """Root of the mean of the squares."""
    return float(values.cpu().double().square().mean().sqrt())


def _run(model: nn.Module, batch: Mapping[str, Any], embedding: nn.Module, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """The embedding's output and layer 0's input, in float32."""
    seen: dict[str, Tensor] = {}

    def at_embedding(_module: nn.Module, _args: Any, output: Tensor) -> None:
        seen["embedding"] = output.float()

    def at_layer(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen["layer"] = (args[0] if args else kwargs["hidden_states"]).float()
        raise _Reached

    handles = [
        embedding.register_forward_hook(at_embedding),
        layer.register_forward_pre_hook(at_layer, with_kwargs=True),
    ]
    try:
        model(**{key: value for key, value in batch.items() if key != "labels"}, use_cache=False)
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return seen["embedding"], seen["layer"]


def _first_layer(model: nn.Module) -> nn.Module:
    count = model.config.get_text_config().num_hidden_layers  # type: ignore[union-attr,operator]
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module[0]
    raise NeftuneError(f"no list of {count} layers found in {type(model).__name__}")


def _weight(embedding: nn.Module) -> Tensor | None:
    """The table behind an embedding, also below adapters; None where it is sharded over devices."""
    for module in embedding.modules():
        if isinstance(module, nn.Embedding):
            return module.weight if type(module.weight.data) is Tensor else None
    return None
