"""Estimate of the memory of a training run, before anything is loaded.

    weights + gradients + optimiser + activations + logits

The parts that scale with parameters are exact: they are counted on a model without storage. Activations are the usual
estimate of 34 bytes per token, layer and hidden unit in 16 bits (Korthikanti et al., arXiv 2205.05198), and twice that
in 32 bits. Their attention term counts only if `blockwise_attention` stores weights: 2 bytes per layer, head and
pair of tokens that attend. torch's fused attention stores none.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from neftcli.models.adapters import (
    adapter_notices,
    find_adapted_experts,
    match_modules_to_save,
    match_target_modules,
    validate_adapter,
)
from neftcli.models.freezing import find_frozen_weights, freeze_notices, validate_freeze
from neftcli.models.new_tokens import find_token_layers, validate_new_tokens
from neftcli.models.registry import ModelReference

if TYPE_CHECKING:
    from neftcli.recipe.schema import Adapter, Recipe

NF4_BITS = 4
CONSTANT_BITS = {False: 32 / 64, True: 8 / 64 + 32 / (64 * 256)}  # bits per weight of the constants of a block of 64
FLOAT32_BYTES = 4
STATE_BYTES = {
    "adamw_8bit": 2,
    "paged_adamw_8bit": 2,
    "paged_adamw_32bit": 8,
    "lion_32bit": 4,
    "lion_8bit": 1,
    "paged_lion_32bit": 4,
    "paged_lion_8bit": 1,
    "adafactor": 0,  # sums of rows and columns: less than 1 % of the weights
}
"""Bytes that an optimiser keeps for each trained parameter; the others keep two moments in the type of the weights."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Memory of a training run, in bytes by purpose.

    Attributes:
        parameters: Number of parameters of the model.
        trainable: Number of trained parameters.
        weights: Bytes of the weights, including adapters.
        gradients: Bytes of the gradients.
        optimizer: Bytes of the optimiser's state, such as AdamW's two moments.
        activations: Bytes stored for the backward pass, and of the logits of a batch.
        notices: Notices about the adapter or frozen layers.
    """

    parameters: int
    trainable: int
    weights: float
    gradients: float
    optimizer: float
    activations: float
    notices: tuple[str, ...] = ()

    def total(self) -> float:
        """Return the sum of all parts; the memory of the libraries is not included."""
        return self.weights + self.gradients + self.optimizer + self.activations


def estimate_memory(
    recipe: Recipe,
    reference: ModelReference,
    weight_bytes: int,
    activation_bytes: int,
    row_tokens: int,
    device: str,
    vocabulary: int | None = None,
) -> MemoryEstimate:
    """Estimate the memory of training with a recipe.

    Args:
        recipe: The resolved recipe.
        reference: The recipe's model.
        weight_bytes: Bytes per weight that isn't quantised.
        activation_bytes: Bytes per activation, 2 or 4.
        row_tokens: Tokens of the longest row of a batch.
        device: cpu or cuda.
        vocabulary: Number of embeddings with the recipe's new tokens; by default one for each is added.
    """
    from neftcli.models.loading import build_meta_model

    trust = recipe.model.trust_remote_code
    config = _configuration(reference, trust)
    if recipe.model.new_tokens:
        text = config.get_text_config()
        text.vocab_size = vocabulary or text.vocab_size + len(recipe.model.new_tokens)
    model = build_meta_model(reference, config, trust)
    return estimate_model_memory(recipe, model, weight_bytes, activation_bytes, row_tokens, device)


def estimate_model_memory(
    recipe: Recipe, model: Any, weight_bytes: int, activation_bytes: int, row_tokens: int, device: str
) -> MemoryEstimate:
    """Estimate like `estimate_memory` for a loaded model or one on the meta device, before it gets adapters."""
    from neftcli.kernels.attention import MAX_BLOCKWISE_TOKENS, num_saved_weights

    parameters, layers, adapter = _count_parameters(model, recipe.adapter)
    validate_new_tokens(model, recipe)
    for layer in find_token_layers(model, recipe.adapter).values():
        adapter += len(recipe.model.new_tokens) * layer.weight.shape[1]
    full, frozen = recipe.adapter.type == "none", recipe.training.freeze
    validate_freeze(model, frozen)
    trained = parameters - sum(weight.numel() for weight in find_frozen_weights(model, frozen))
    trainable = trained if full else adapter
    copies = 2 if recipe.adapter.uses_pissa() else 1  # PiSSA keeps the weights that the adapter started from
    trained_bytes = weight_bytes if full else FLOAT32_BYTES  # gradients and AdamW's moments have the same type
    linear = sum(module.weight.numel() for module in layers)
    linear_bytes: float = linear * weight_bytes
    if recipe.quantization.type == "nf4":
        linear_bytes = linear * (NF4_BITS + CONSTANT_BITS[recipe.quantization.double_quantization]) / 8
    elif recipe.quantization.type == "int8":
        linear_bytes = linear + FLOAT32_BYTES * sum(map(_outputs, layers))  # a scale for each output
    weights = (parameters - linear) * weight_bytes + linear_bytes
    text = model.config.get_text_config()
    tokens = recipe.training.per_device_train_batch_size * row_tokens
    if recipe.neftune.noise == "symmetric":
        tokens *= 2
    per_layer = 34 * tokens * text.hidden_size * activation_bytes / 2
    if (
        recipe.training.fused_layers
        and device == "cpu"
        and activation_bytes == 2
        and row_tokens <= MAX_BLOCKWISE_TOKENS
    ):
        heads = getattr(text, "num_attention_heads", 0)  # state-space models have none
        per_layer += 2 * tokens / row_tokens * heads * num_saved_weights(row_tokens)
    depth = text.num_hidden_layers
    if recipe.training.gradient_checkpointing:
        activations = per_layer + depth * tokens * text.hidden_size * activation_bytes
    else:
        activations = depth * per_layer
    return MemoryEstimate(
        parameters=parameters,
        trainable=trainable,
        weights=weights + (0 if full else adapter * trained_bytes * copies),
        gradients=trainable * trained_bytes,
        optimizer=trainable * STATE_BYTES.get(recipe.training.optim, 2 * trained_bytes),
        activations=activations + tokens * text.vocab_size * FLOAT32_BYTES,
        notices=(*adapter_notices(model, recipe.adapter), *freeze_notices(model, frozen)),
    )


def _configuration(reference: ModelReference, trust_remote_code: bool) -> Any:
    """Load a model's configuration; for an alias, build it from the registry without the hub."""
    from transformers import AutoConfig

    if reference.alias and reference.alias.architecture:
        architecture = dict(reference.alias.architecture)
        return AutoConfig.for_model(architecture.pop("model_type"), **architecture)
    from neftcli.models.gguf import pretrained_location
    from neftcli.models.load_errors import translate_load_errors

    with translate_load_errors(reference):
        return AutoConfig.from_pretrained(
            pretrained_location(reference), revision=reference.revision, trust_remote_code=trust_remote_code
        )


def _inputs_and_outputs(layer: Any) -> int:
    """Return the inputs plus the outputs of a layer; quantised weights have a different shape."""
    return layer.in_features + layer.out_features if hasattr(layer, "in_features") else sum(layer.weight.shape)


def _outputs(layer: Any) -> int:
    """Return the outputs of a linear layer, an embedding or a Conv1D, whose weight is (inputs, outputs)."""
    return int(layer.out_features if hasattr(layer, "out_features") else layer.weight.shape[1])


def _count_parameters(model: Any, adapter: Adapter) -> tuple[int, list[Any], int]:
    """Count all parameters and those that the adapter trains; also list the linear layers without the output layer."""
    import torch

    head = model.get_output_embeddings()
    validate_adapter(model, adapter)
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]
    targets: list[Any] = []
    if adapter.target_modules == "all-linear":
        targets += layers
    else:
        for name in adapter.target_modules:
            targets += match_target_modules(model, name)
    trained = adapter.r * sum(map(_inputs_and_outputs, targets))  # (out, r) and (r, in)
    if adapter.use_dora:
        trained += sum(map(_outputs, targets))  # a magnitude each
    weights = dict(model.named_parameters())
    for path, rank in find_adapted_experts(model, adapter).items():
        *experts, outputs, inputs = weights[path].shape
        trained += rank * (outputs + inputs) * prod(experts)
    for name in adapter.modules_to_save:
        for module in match_modules_to_save(model, name):
            trained += sum(weight.numel() for weight in module.parameters())
    return model.num_parameters(), layers, trained
