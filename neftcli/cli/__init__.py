"""What a person types and sees: one file a command, and the displays. No torch here."""

import sys

if sys.argv[0] == "-m" and not sys.flags.safe_path:  # Python imports this package to run a module of it
    del sys.path[0]  # the current folder, whose modules would take the place of others
