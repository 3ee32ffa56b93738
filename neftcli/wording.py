"""Numbers of things in words, for the messages of every package."""

from __future__ import annotations


def count_noun(number: float, noun: str, plural: str = "") -> str:
    """Format a number of things: "1 row", "12 rows", "0.5 epochs", "2 processes".

    Args:
        number: The number.
        noun: The noun for one of them.
        plural: The noun for several; by default with an s.
    """
    shown = str(int(number)) if number == int(number) else f"{number:.3g}"
    return f"{shown} {noun}" if shown == "1" else f"{shown} {plural or f'{noun}s'}"


def choose(number: float, one: str, several: str) -> str:
    """Return the form of a word that agrees with a number."""
    return one if number == 1 else several
