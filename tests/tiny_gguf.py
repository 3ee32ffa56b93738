"""Write a tiny Llama as a .gguf file, in the layout of llama.cpp's converter."""

from pathlib import Path
from typing import Any

import numpy
from transformers import PreTrainedModel, PreTrainedTokenizerFast

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NORMAL, CONTROL = 1, 3


def save_tiny_gguf(file: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, **token_ids: int) -> None:
    """Write `model`, a tiny Llama, with a byte tokenizer.

    Args:
        file: Where to.
        model: Its weights are written in float32.
        tokenizer: Its tokens and chat template are written.
        token_ids: Of `eot`, and others that a file's metadata can name.
    """
    import gguf

    config: Any = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    tokens += [f"<unused{number}>" for number in range(len(tokens), config.vocab_size)]
    special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in special else NORMAL for token in tokens])
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_merges([])
    for name, number in {"bos": 1, "eos": 2, "padding": 0, **token_ids}.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
    for name, weight in model.state_dict().items():
        values = weight.float().numpy()
        if "q_proj" in name or "k_proj" in name:
            heads = values.reshape(config.num_attention_heads, 2, -1, values.shape[1])
            values = heads.swapaxes(1, 2).reshape(values.shape)  # llama.cpp turns neighbours, transformers halves
        path = name.removesuffix(".weight")
        if path.startswith("model.layers."):
            _, _, layer, part = path.split(".", 3)
            path = f"blk.{layer}.{NAMES[part]}"
        else:
            path = NAMES[path]
        writer.add_tensor(f"{path}.weight", numpy.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
