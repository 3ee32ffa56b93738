"""Held-out splits.

Oracles: laws that hypothesis tries to break (no prompt on both sides, the same split for the same seed whatever the
order of the rows), and pairs of prompts that a person would or would not call the same.
"""

import unicodedata
from collections import Counter
from hashlib import blake2b
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neftcli.data import splits
from neftcli.data.splits import count_duplicates, normalize_prompt
from neftcli.rows.example import Example, Turn


def example(prompt: str, answer: str = "a", location: str = "") -> Example:
    return Example((Turn("user", prompt), Turn("assistant", answer)), "", location)


def examples(prompts: list[str]) -> list[Example]:
    return [example(prompt, location=str(number)) for number, prompt in enumerate(prompts)]


def key(one: Example) -> str:
    """Return the prompt in lower case without punctuation and space at its ends: equal for the spellings below."""
    return one.prompt().casefold().strip(" .!?")


def keys(side: list[Example]) -> set[str]:
    return {key(one) for one in side}


def split_held_out(rows: list[Example], number: int, seed: int) -> tuple[list[Example], list[Example]]:
    train, held_out = splits.split_held_out(rows, number, seed)
    return [rows[place] for place in train], [rows[place] for place in held_out]


def sample_rows(rows: list[Example], number: int, seed: int) -> list[Example]:
    return [rows[place] for place in splits.sample_rows(rows, number, seed)]


def exclude_prompts(rows: list[Example], held_out: list[Example]) -> list[Example]:
    return [rows[place] for place in splits.exclude_prompts(rows, held_out)]


def numbered(count: int) -> list[Example]:
    return examples([f"Question number {number}" for number in range(count)])


# A few prompts, each in several spellings, so that duplicates are many.
prompts = st.builds(
    lambda word, spell: spell(word),
    st.sampled_from(["one", "two two", "three", "größe", "five", "six", "seven", "eight", "nine", "ten"]),
    st.sampled_from([str, str.upper, str.title, lambda word: f"  {word}?", lambda word: f"{word} !"]),
)
many_prompts = st.lists(prompts, min_size=1, max_size=60)
seeds = st.integers(0, 5)
wanted = st.integers(0, 20)
without_deadline = settings(deadline=None)


@without_deadline
@given(many_prompts, wanted, seeds)
def test_split_held_out_no_prompt_on_both_sides(texts: list[str], rows: int, seed: int) -> None:
    """With duplicates in any spelling, a prompt is either trained on or held out."""
    train, held_out = split_held_out(examples(texts), rows, seed)
    assert not keys(train) & keys(held_out)


@without_deadline
@given(many_prompts, wanted, seeds)
def test_split_held_out_keeps_every_row_in_order(texts: list[str], rows: int, seed: int) -> None:
    """No row is lost or doubled, and each split keeps the order."""
    train, held_out = split_held_out(examples(texts), rows, seed)
    places = [[int(one.location) for one in side] for side in (train, held_out)]
    assert all(side == sorted(side) for side in places)
    assert sorted(places[0] + places[1]) == list(range(len(texts)))


@without_deadline
@given(many_prompts, wanted, seeds)
def test_split_held_out_at_most_a_fifth(texts: list[str], rows: int, seed: int) -> None:
    """Training keeps at least four fifths."""
    held_out = split_held_out(examples(texts), rows, seed)[1]
    assert len(held_out) <= rows
    assert 5 * len(held_out) <= len(texts)


@without_deadline
@given(many_prompts, wanted, seeds, st.randoms(use_true_random=False))
def test_split_held_out_independent_of_row_order(texts: list[str], rows: int, seed: int, random: Random) -> None:
    """The same rows are held out if they come in a different order."""
    given_rows = examples(texts)
    shuffled = list(given_rows)
    random.shuffle(shuffled)
    held_out, again = split_held_out(given_rows, rows, seed)[1], split_held_out(shuffled, rows, seed)[1]
    assert {one.location for one in held_out} == {one.location for one in again}


def test_split_held_out_depends_on_the_seed_only() -> None:
    """The same seed gives the same split, and each of 20 seeds a different one."""
    rows = numbered(200)
    splits = [tuple(one.location for one in split_held_out(rows, 20, seed)[1]) for seed in range(20)]
    assert splits == [tuple(one.location for one in split_held_out(rows, 20, seed)[1]) for seed in range(20)]
    assert len(set(splits)) == 20


def test_split_held_out_is_uniform() -> None:
    """20 of 100 rows, for 400 seeds: 80 times each, with a standard deviation of 8."""
    counts = Counter(one.location for seed in range(400) for one in split_held_out(numbered(100), 20, seed)[1])
    assert len(counts) == 100
    assert 40 <= min(counts.values()) <= max(counts.values()) <= 120  # five standard deviations


def test_split_held_out_stable_when_rows_are_added() -> None:
    """A row added to the data leaves nearly all held-out rows in place."""
    before = {one.location for one in split_held_out(numbered(200), 20, 0)[1]}
    after = {one.location for one in split_held_out(numbered(201), 20, 0)[1]}
    assert len(before & after) >= 19


@pytest.mark.parametrize(
    ("count", "rows", "held_out"),
    [(1, 10, 0), (4, 10, 0), (5, 10, 1), (9, 10, 1), (10, 10, 2), (50, 10, 10), (100, 10, 10), (100, 0, 0)],
)
def test_split_held_out_sizes(count: int, rows: int, held_out: int) -> None:
    """Of distinct prompts the number asked for is held out, or a fifth, rounded down."""
    assert [len(side) for side in split_held_out(numbered(count), rows, 0)] == [count - held_out, held_out]


def test_split_held_out_skips_a_group_that_is_too_large() -> None:
    """Eighty rows with the same prompt can't be held out; the twenty others can."""
    rows = examples(["always the same"] * 80 + [f"other {number}" for number in range(20)])
    for seed in range(5):
        train, held_out = split_held_out(rows, 10, seed)
        assert len(held_out) == 10
        assert sum(one.prompt() == "always the same" for one in train) == 80


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 2 + 2?", "what is 2+2"),
        ("Hello, world!", "HELLO WORLD"),
        ("a\nb\tc", "a b c"),
        ("Straße", "STRASSE"),
        ("ﬁne", "fine"),
        ("１２", "12"),
        ("cafe\u0301", "café"),
        ("don't", "don’t"),
    ],
)
def test_normalize_prompt_equal(one: str, other: str) -> None:
    """Case, punctuation, white space and the encoding of a character don't matter."""
    assert normalize_prompt(one) == normalize_prompt(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 2 + 2?", "What is 2 + 3?"),
        ("What is 2 + 2?", "What is 2 * 2?"),
        ("Is 2 < 3?", "Is 2 > 3?"),
        ("ab", "a b"),
        ("café", "cafe"),
        ("कि", "का"),  # Devanagari: the vowel is a sign on the consonant
        ("กิน", "กัน"),  # Thai likewise: to eat, each other
        ("日本", "日木"),
    ],
)
def test_normalize_prompt_different(one: str, other: str) -> None:
    """A different letter, digit, accent or vowel sign makes a different prompt."""
    assert normalize_prompt(one) != normalize_prompt(other)


@given(st.text(max_size=40))
def test_normalize_prompt_single_spaces(text: str) -> None:
    """The result is words with single spaces between them."""
    found = normalize_prompt(text)
    assert found == " ".join(found.split())


@without_deadline
@given(many_prompts, many_prompts)
def test_exclude_prompts(texts: list[str], held_out: list[str]) -> None:
    """Only rows whose prompt is held out, in any spelling, are dropped; the others keep their order."""
    kept = exclude_prompts(examples(texts), examples(held_out))
    gone = keys(examples(held_out))
    assert kept == [one for one in examples(texts) if key(one) not in gone]


@given(st.integers(0, 40), st.integers(1, 50), seeds)
def test_sample_rows_number_and_order(count: int, rows: int, seed: int) -> None:
    """No row is chosen twice; if there are fewer rows, all are chosen."""
    places = [int(one.location) for one in sample_rows(numbered(count), rows, seed)]
    assert len(places) == min(rows, count)
    assert places == sorted(set(places))
    assert set(places) <= set(range(count))


def test_sample_rows_depends_on_the_seed() -> None:
    """Different seeds choose different rows, even if all prompts are equal."""
    for rows in (numbered(50), examples(["always the same"] * 50)):
        chosen = [tuple(one.location for one in sample_rows(rows, 10, seed)) for seed in range(10)]
        assert chosen[0] == tuple(one.location for one in sample_rows(rows, 10, 0))
        assert len(set(chosen)) == 10


def test_count_duplicates() -> None:
    """A repeated prompt with a different answer is no duplicate; a different spelling of the prompt is one."""
    rows = [example("q", "a"), example("Q?", "a"), example("q", "b"), example("p", "a"), example("q", "a")]
    assert count_duplicates(rows) == 2
    assert count_duplicates([]) == 0


def test_split_held_out_plain_text() -> None:
    """A text is its own prompt: the same text twice is one group and a duplicate."""
    rows = [Example((), f"text {number // 2}", str(number)) for number in range(20)]
    train, held_out = split_held_out(rows, 4, 0)
    assert len(held_out) == 4
    assert not {one.text for one in train} & {one.text for one in held_out}
    assert count_duplicates(rows) == 10


# Comparison with dictionaries of prompts


def by_groups(rows: list[Example], number: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Split by the rule written out: whole groups in the order of their hash, as long as they fit."""
    limit = min(number, int(len(rows) * 0.2))
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(normalize_prompt(row.prompt()), []).append(place)
    chosen: list[int] = []
    for prompt in sorted(groups, key=lambda prompt: hashed(f"{seed}/{prompt}")):
        if len(chosen) == limit:
            break
        if len(chosen) + len(groups[prompt]) <= limit:
            chosen += groups[prompt]
    train = [row for place, row in enumerate(rows) if place not in chosen]
    return train, [rows[place] for place in sorted(chosen)]


def hashed(key: str) -> bytes:
    return blake2b(key.encode(), digest_size=16).digest()


@without_deadline
@given(many_prompts, wanted, seeds)
def test_split_held_out_is_the_split_by_groups(texts: list[str], rows: int, seed: int) -> None:
    """The same rows in the same order."""
    assert split_held_out(examples(texts), rows, seed) == by_groups(examples(texts), rows, seed)


@without_deadline
@given(many_prompts, wanted, seeds)
def test_sample_rows_is_the_choice_by_hashes(texts: list[str], rows: int, seed: int) -> None:
    """The rows with the smallest hashes of index and prompt, in order."""
    given_rows = examples(texts)
    order = sorted(range(len(texts)), key=lambda place: hashed(f"{seed}/{place}/{given_rows[place].prompt()}"))
    assert sample_rows(given_rows, rows, seed) == [given_rows[place] for place in sorted(order[:rows])]


@without_deadline
@given(many_prompts, st.lists(st.sampled_from("ab"), min_size=60, max_size=60))
def test_count_duplicates_and_select_distinct_agree_with_sets(texts: list[str], answers: list[str]) -> None:
    """The last of equal rows takes the position of the first, as in a dictionary."""
    rows = [example(text, answer, str(place)) for place, (text, answer) in enumerate(zip(texts, answers, strict=False))]
    assert count_duplicates(rows) == len(rows) - len({(normalize_prompt(row.prompt()), row.answer()) for row in rows})
    last = list({(row.turns, row.text): row for row in rows}.values())
    assert [rows[place] for place in splits.select_distinct(rows)] == last


@without_deadline
@given(many_prompts, many_prompts)
def test_select_unseen_anywhere_in_a_conversation(texts: list[str], seen: list[str]) -> None:
    """Even if it is not the last question."""
    rows = [
        Example((Turn("user", first), Turn("assistant", "a"), Turn("user", second), Turn("assistant", "b")), "", "")
        for first, second in zip(texts, reversed(texts), strict=True)
    ]
    known = {normalize_prompt(prompt) for row in examples(seen) for prompt in row.prompts()}
    kept = [place for place, row in enumerate(rows) if known.isdisjoint(map(normalize_prompt, row.prompts()))]
    assert splits.select_unseen(rows, splits.hash_prompts(examples(seen))).tolist() == kept
    assert splits.select_unseen(rows, splits.hash_prompts([])).tolist() == list(range(len(rows)))


@given(st.text())
def test_normalize_prompt_letter_by_letter(text: str) -> None:
    """Letters, marks and digits stay, signs of arithmetic and money become words, others a space."""
    normalized = ""
    for letter in unicodedata.normalize("NFKC", text).casefold():
        category = unicodedata.category(letter)
        if letter.isalnum() or category in ("Mn", "Mc", "Me"):
            normalized += letter
        elif category in ("Sm", "Sc") or letter in "*/%^":
            normalized += f" {letter} "
        else:
            normalized += " "
    assert normalize_prompt(text) == " ".join(normalized.split())
