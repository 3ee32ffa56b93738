"""Models: from a name to weights and a tokenizer.

`names.py` resolves aliases, hub ids, folders, .gguf files and installed model packages without importing torch;
`gguf.py` converts a .gguf once into the user's cache; `loading.py` loads, quantises and explains what is missing;
`templates.py` holds the named chat templates; `memory.py` estimates what training will need. `attention.py` with
`short_attention.py` on CPUs and `varlen_attention.py` on GPUs, `head.py` and `low_rank.py` compute parts of a model
with less work than the libraries do.
"""
