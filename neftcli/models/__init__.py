"""Models: from a name to weights and a tokenizer, and back to files.

- `registry.py`: aliases, hub ids, folders, .gguf files and installed model packages, without importing torch.
- `validate.py`: checks of `config.json` and weight files before anything is loaded.
- `loading.py`: load a tokenizer, a model or an adapter.
- `load_errors.py`: turn the exceptions of the libraries into messages with a hint.
- `model_files.py`: the files that determine a model's outputs, their hash, and damaged ones.
- `gguf.py`: convert a .gguf file to safetensors in the user's cache, once.
- `chat_templates.py`: the named chat templates and the model's own.
- `limits.py`: the sizes of a model's vocabulary and context, and rows that exceed them.
- `adapters.py`: the layers that an adapter names.
- `memory.py`: estimate the memory of a training run.
- `settings_files.py`: locate, read and write generation settings, `config.json` and tokenizer files.
"""
