"""Recipes: their schema, how they are read and checked, and the ones that ship with the tool.

`schema.py` defines every option once. `yaml_file.py` turns a file into settings that remember their line,
`loading.py` lays settings over one another and checks them, `catalog.py` finds the shipped recipes.
"""
