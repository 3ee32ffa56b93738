"""The command line: one module for each command, flags made from the recipe schema, and the displays. No torch here."""
