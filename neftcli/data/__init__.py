"""Data: from files to token ids.

`sources.py` opens sources of rows (`folders.py` finds the files of a split, `remote.py` downloads); the package `rows`
reads the files and turns rows into examples. `mixture.py` reads, mixes and splits the examples of a recipe with
`splits.py`. `chat.py` applies the chat template; for training, `rendering.py` renders whole conversations,
`answer_spans.py` finds their answers, and `rendering_checks.py` rejects templates that leave a part out, which
`template_probe.py` finds. `tokens.py` tokenises conversations and marks the tokens with loss, and `prepare.py` does so
for both splits, through `token_cache.py`. `dataset.py` stores examples and tokens in Arrow files. `inspection.py`
shows rows as the model sees them.
"""
