"""Recipes: the schema of options, loading and validation, and the recipes that ship with neft.

`schema.py` defines each option once, `keys.py` lists the options by their dotted keys. `yaml_file.py` reads a file
into settings with their lines, `loading.py` merges and validates settings, `hints.py` suggests valid values,
`relative_paths.py` resolves the paths of a run's recipe, and `catalog.py` finds the shipped recipes: each is a file in
`recipes/`.
"""
