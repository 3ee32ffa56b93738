"""Write a tuned model as a .gguf file, with the `gguf` package of llama.cpp's authors.

The package knows the names of tensors and metadata and quantises; this module adds the families of models. Each entry
of `GGUF_FAMILIES` follows llama.cpp's own converter for that architecture, and is tested by loading the file with
transformers' reader, and once with llama.cpp itself (docs/lab-log.md).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from neftcli.errors import InputError, ModelError, Problem
from neftcli.evaluation.progress import ProgressReporter
from neftcli.events import Notice, Observer, PhaseId
from neftcli.export.gguf_vocabulary import read_gguf_vocabulary
from neftcli.models.gguf import END_OF_TURN

if TYPE_CHECKING:
    import torch

    from neftcli.export.tuned_model import TunedModel
    from neftcli.runs.directory import RunDirectory

CONVERTER = "neft merge RUN --out FOLDER    then llama.cpp's convert_hf_to_gguf.py FOLDER"
LINKED = "model.gguf"
SCALINGS = ("default", "linear", "yarn", "llama3")
"""Types of position scaling (RoPE) that are written."""


@dataclass(frozen=True, slots=True)
class GgufFamily:
    """How a model type is written.

    Attributes:
        architecture: llama.cpp's name of the architecture.
        interleaved: llama.cpp rotates neighbouring components of queries and keys, transformers the two halves.
    """

    architecture: str
    interleaved: bool = False


GGUF_FAMILIES = {
    "llama": GgufFamily("llama", interleaved=True),
    "mistral": GgufFamily("llama", interleaved=True),
    "qwen2": GgufFamily("qwen2"),
    "qwen3": GgufFamily("qwen3"),
}
"""`model_type` of config.json to family."""


def require_gguf_support(config: dict[str, Any]) -> None:
    """Check that a model with this `config.json` can be written, before it is loaded.

    Raises:
        InputError: The gguf package is missing.
        ModelError: The model type, its activation or its position scaling is not supported.
    """
    if importlib.util.find_spec("gguf") is None:
        raise InputError(Problem("writing .gguf needs the gguf package", "it is not installed", "pip install gguf"))
    kind = str(config.get("model_type"))
    if kind not in GGUF_FAMILIES:
        raise ModelError(
            Problem(
                f"neft can't write models of the type {kind} as .gguf",
                f"it can write {', '.join(GGUF_FAMILIES)}",
                CONVERTER,
            )
        )
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ModelError(Problem(f"llama.cpp computes {kind} with SiLU only", f"hidden_act: {activation}", CONVERTER))
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling = rope.get("rope_type", rope.get("type", "default"))
    if scaling not in SCALINGS:
        message = f"neft can't write the position scaling {scaling} as .gguf"
        raise ModelError(Problem(message, f"it can write {', '.join(SCALINGS)}", CONVERTER))


def write_gguf(tuned: TunedModel, run: RunDirectory, quantization: str, file: Path, observer: Observer) -> None:
    """Write a model, its tokenizer, chat template and stop tokens.

    Matrices get the type `quantization`; norms and biases stay in float32, as in llama.cpp's own files. A matrix whose
    rows are not a multiple of 32 stays in float16 under q8_0.

    Args:
        tuned: The model, in float32.
        run: Its run, for the name and the stop tokens.
        quantization: f32, f16, bf16 or q8_0.
        file: The file, which does not exist.
        observer: Receives progress and notices.

    Raises:
        ModelError: llama.cpp has no such tokenizer.
    """
    import gguf
    from numpy import dtype, float32

    config = tuned.model.config.get_text_config()
    family = GGUF_FAMILIES[config.model_type]
    writer = gguf.GGUFWriter(None, family.architecture)
    writer.add_name(run.path.name)
    _add_parameters(writer, config, quantization)
    _add_vocabulary(writer, tuned, run, config.vocab_size, observer)
    for notice in _window_notices(config):
        observer.notify(Notice(notice))

    tensors = list(_rename_tensors(tuned.model, config, family))
    types = []
    for name, weight in tensors:
        kind = _tensor_type(weight, quantization)
        types.append(kind)
        size = math.prod(gguf.quant_shape_to_byte_shape(tuple(weight.shape), kind))
        writer.add_tensor_info(name, tuple(weight.shape), dtype(float32), size, raw_dtype=kind)
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    done, total = 0, sum(weight.numel() for _, weight in tensors)
    progress = ProgressReporter(PhaseId.WRITING_GGUF, "", done, total, observer)
    for (_, weight), kind in zip(tensors, types, strict=True):
        writer.write_tensor_data(gguf.quantize(weight.float().contiguous().numpy(), kind))
        done += weight.numel()
        progress.add(done, weight.numel())
    writer.close()


def _tensor_type(weight: torch.Tensor, quantization: str) -> Any:
    """Return the type in which a tensor is stored."""
    import gguf

    if weight.dim() == 1:
        return gguf.GGMLQuantizationType.F32
    if quantization == "q8_0" and weight.shape[-1] % 32:
        return gguf.GGMLQuantizationType.F16
    return gguf.GGMLQuantizationType[quantization.upper()]


def _add_parameters(writer: Any, config: Any, quantization: str) -> None:
    """Add the sizes and constants of the architecture."""
    import gguf

    head = getattr(config, "head_dim", None)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if head is not None:
        writer.add_key_length(head)
        writer.add_value_length(head)
    writer.add_rope_dimension_count(head or config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    scaling = rope.get("rope_type", "default")
    if scaling in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR if scaling == "linear" else gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
    if scaling == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    file_type = "ALL_F32" if quantization == "f32" else f"MOSTLY_{quantization.upper()}"
    writer.add_file_type(gguf.LlamaFileType[file_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_vocabulary(writer: Any, tuned: TunedModel, run: RunDirectory, size: int, observer: Observer) -> None:
    """Add tokens, special tokens, stop tokens and the chat template."""
    vocabulary = read_gguf_vocabulary(tuned.tokenizer, size)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.model == "gpt2":
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.adds_space is not None:
        writer.add_add_space_prefix(vocabulary.adds_space)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_eos_token(False)
    for token, add in (
        (vocabulary.bos, writer.add_bos_token_id),
        (vocabulary.unknown, writer.add_unk_token_id),
        (vocabulary.padding, writer.add_pad_token_id),
    ):
        if token is not None:
            add(token)
    stop_ids = list_stop_tokens(tuned.tokenizer, run)
    for token, add in zip(
        stop_ids, (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id), strict=False
    ):
        add(token)
    unnamed = [vocabulary.tokens[token] for token in stop_ids[3:]]
    unnamed = [text for text in unnamed if text not in END_OF_TURN]
    if unnamed:
        observer.notify(Notice(f"a .gguf file names three stop tokens; not in the file: {', '.join(unnamed)}"))
    if isinstance(tuned.tokenizer.chat_template, str):
        writer.add_chat_template(tuned.tokenizer.chat_template)


def list_stop_tokens(tokenizer: Any, run: RunDirectory) -> list[int]:
    """List the tokens that end the run's answers, the tokenizer's end-of-text token first if it is one of them."""
    from neftcli.models.loading import read_stop_tokens
    from neftcli.models.registry import ModelReference

    stop_ids = read_stop_tokens(ModelReference(run.path.name, "folder", str(run.model))) or {tokenizer.eos_token_id}
    return sorted(stop_ids, key=lambda token: (token != tokenizer.eos_token_id, token))


def _window_notices(config: Any) -> list[str]:
    """List notices about attention that llama.cpp computes differently in long texts."""
    window = getattr(config, "sliding_window", None)
    if config.model_type.startswith("qwen") and not getattr(config, "use_sliding_window", False):
        window = None
    if window is None or window >= config.max_position_embeddings:
        return []
    return [
        f"the model attends to the last {window} tokens only; llama.cpp attends to all, so longer texts are computed "
        "differently"
    ]


def _rename_tensors(model: Any, config: Any, family: GgufFamily) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights with their names in a .gguf file; the output layer is left out if it is the embedding.

    Raises:
        ModelError: A weight has no name in this architecture.
    """
    import gguf

    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family.architecture)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    tied = bool(config.tie_word_embeddings)
    factors = _position_factors(config)
    if factors is not None:
        yield "rope_freqs.weight", factors
    for path, weight in model.state_dict().items():
        if tied and path == "lm_head.weight":
            continue
        name = names.get_name(path, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ModelError(Problem(f"llama.cpp's {family.architecture} has no such weight", path, CONVERTER))
        if family.interleaved and path.rpartition(".")[0].endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if "q_proj" in path else config.num_key_value_heads
            weight = _interleave(weight, heads)
        yield name, weight.detach()


def _interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder the rows of each head from halves to neighbours: 0, d/2, 1, d/2 + 1, ...

    Args:
        weight: Weight of shape (heads * d, inputs), or bias of shape (heads * d).
        heads: Number of heads.
    """
    halves = weight.reshape(heads, 2, -1, *weight.shape[1:])  # (heads, 2, d / 2, inputs)
    return halves.transpose(1, 2).reshape(weight.shape)


def _position_factors(config: Any) -> torch.Tensor | None:
    """Return the divisors of Llama 3's position frequencies, of shape (d / 2); None without this scaling.

    Let w be the wavelength 2 pi / frequency, L the original context, and l and h the low and high frequency factors:

        w < L / h: 1        w > L / l: factor        else 1 / ((1 - s) / factor + s),  s = (L / w - l) / (h - l)
    """
    import torch

    rope = config.rope_parameters
    if rope.get("rope_type") != "llama3":
        return None
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    context = rope["original_max_position_embeddings"]
    factors = []
    for index in range(0, head, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (index / head)
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(float(factor))
        else:
            smooth = (context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(factors, dtype=torch.float32)


def load_gguf(file: Path, expected: Any) -> Any:
    """Load a .gguf file with transformers' reader, in float32.

    The file is read through a link in a folder of its own: beside an adapter the reader would load that one.

    The reader takes no position scaling and, for Qwen3, no head size from a file, so these come from `expected`.

    Args:
        file: The file.
        expected: Configuration of the model that was written.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    text = expected.get_text_config()
    with TemporaryDirectory() as folder:
        (Path(folder) / LINKED).symlink_to(file.absolute())
        config = AutoConfig.from_pretrained(folder, gguf_file=LINKED)
        if text.rope_parameters.get("rope_type", "default") != "default":
            config.rope_parameters = text.rope_parameters
        if getattr(text, "head_dim", None) is not None:
            config.head_dim = text.head_dim
        return AutoModelForCausalLM.from_pretrained(folder, gguf_file=LINKED, config=config, dtype=torch.float32)
