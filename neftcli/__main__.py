"""`python -m neftcli`, the same as the command `neft`."""

import sys

if not sys.flags.safe_path:  # sys.path begins with the current folder, whose modules could replace others
    del sys.path[0]

from neftcli.cli.main import command

if __name__ == "__main__":
    command()
