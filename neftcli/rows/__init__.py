"""Rows: from a file to an example.

`readers.py` reads the rows of a file (`data_file.py`); `formats.py` turns rows into examples (`example.py`) with
`turns.py` and `tool_calls.py`; `unsupported.py` rejects rows that supervised fine-tuning can't use, and
`column_suggestions.py` suggests options for columns with other names.

Registries: `formats.ROW_FORMATS`, `readers.FILE_READERS`, `unsupported.UNSUPPORTED_ROWS`.
"""
