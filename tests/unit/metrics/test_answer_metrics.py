"""Metrics of answers.

Oracles: the definitions, counted n-gram by n-gram in loops; values worked by hand; rouge_score with its own tokenizer
on plain English; sacrebleu on characters with spaces put between them; and laws (equal texts, symmetry, repeated
corpora).
"""

import math
import string
import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

from neftcli.metrics.answer_means import mean_answer_metrics
from neftcli.metrics.answer_metrics import (
    SHORT_REFERENCE,
    distinct_n,
    measure_answer,
    signatures,
    similarity,
)
from neftcli.metrics.registry import ANSWER_METRICS, METRICS_BY_ID

# One short sentence and three letters of each.
SPACED = {
    "Latin": ("Schöne Grüße aus Köln", "ñéø"),
    "Cyrillic": ("Съешь ещё этих мягких булок", "дйю"),
    "Greek": ("Ξεσκεπάζω την ψυχοφθόρα", "αβγ"),
    "Arabic": ("نص حكيم له سر قاطع", "سشص"),
    "Hebrew": ("דג סקרן שט בים", "אבג"),
    "Devanagari": ("ऋषियों को सताने वाले", "कखग"),
    "Hangul": ("다람쥐 헌 쳇바퀴에", "가나다"),
}
UNSPACED = {
    "Han": ("今天天气很好，我们去公园。", "天气好"),
    "Hiragana": ("いろはにほへと ちりぬるを", "いろは"),
    "Katakana": ("コーヒーとパン", "カキク"),
    "Thai": ("เป็นมนุษย์สุดประเสริฐ", "กขค"),
    "Lao": ("ສະບາຍດີຊາວໂລກ", "ກຂຄ"),
    "Khmer": ("ខ្ញុំចង់ទៅផ្ទះ", "កខគ"),
    "Myanmar": ("သီဟိုဠ်မှ ဉာဏ်ကြီးရှင်", "ကခဂ"),
}
SCRIPTS = {**SPACED, **UNSPACED}
english = st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "mat", "Cat,", "mat.", "and"]), max_size=30).map(
    " ".join
)
every_script = st.lists(
    st.sampled_from([*"".join(sentence for sentence, _ in SCRIPTS.values()), "x", " ", "!", "7"]), max_size=30
).map("".join)


def grams(words: list[str], n: int) -> list[str]:
    return ["|".join(words[start : start + n]) for start in range(len(words) - n + 1)]


def distinct_share(words: list[str], n: int) -> float:
    """Return the share of distinct n-grams, by looking for each among those before it."""
    found = grams(words, n)
    return sum(gram not in found[:place] for place, gram in enumerate(found)) / len(found)


# Means over answers


def test_mean_answer_metrics_leaves_out_answers_without_a_value() -> None:
    """A long reference has no exact match, an empty one no similarity; tokens are those of the answers."""
    answers = [SimpleNamespace(text=text, tokens=tokens) for text, tokens in (("Red.", 2), ("a b", 3), ("", 0))]
    ids = ["answer_tokens", "exact_match", "rouge_l", "distinct_1", "log_diversity"]
    values = mean_answer_metrics(ids, answers, ["red", "a b c d e f", ""])
    assert list(values) == ids
    assert values == {
        "answer_tokens": 5 / 3,
        "exact_match": 1.0,
        "rouge_l": (1 + 2 * 2 / (2 + 6)) / 2,
        "distinct_1": 1.0,
        "log_diversity": None,
    }


@pytest.mark.parametrize("metric", ANSWER_METRICS)
def test_mean_answer_metrics_needs_a_reference(metric: str) -> None:
    """Exactly the metrics that the registry says."""
    answers = [SimpleNamespace(text="one two three four five", tokens=5, truncated=False)]
    [value] = mean_answer_metrics([metric], answers, [""]).values()
    assert (value is None) == METRICS_BY_ID[metric].needs_reference


# Repetition and diversity


@given(english)
def test_measure_answer_repetition_and_diversity(answer: str) -> None:
    words = answer.split()
    measured = measure_answer(answer, None)
    if len(words) < 2:
        assert measured.repetition_2 is None
    else:
        assert measured.repetition_2 == pytest.approx(1 - distinct_share(words, 2))
    if len(words) < 4:
        assert measured.log_diversity is None
        return
    diversity = distinct_share(words, 2) * distinct_share(words, 3) * distinct_share(words, 4)
    assert measured.log_diversity == pytest.approx(min(20.0, -math.log(1 - diversity) if diversity < 1 else 20.0))


@pytest.mark.parametrize(
    ("answer", "repetition", "diversity"),
    [
        ("", None, None),
        ("word", None, None),
        ("two words", 0.0, None),
        ("a b a b", 1 / 3, -math.log(1 - 2 / 3)),  # 2-grams ab ba ab, and no longer one twice
        ("a b c d", 0.0, 20.0),
        ("a a a a a", 3 / 4, -math.log(1 - 1 / 4 * 1 / 3 * 1 / 2)),
        ("天天天 天天", 3 / 4, -math.log(1 - 1 / 4 * 1 / 3 * 1 / 2)),  # characters, with or without spaces
        ("กำกำกำ", 3 / 5, -math.log(1 - 2 / 5 * 2 / 4 * 2 / 3)),
        ("น้น้น้", 1 / 2, None),  # a mark is part of its letter
        ("GPU很GPU很", 1 / 3, -math.log(1 - 2 / 3)),  # a word between characters
    ],
)
def test_measure_answer_repetition_and_diversity_by_hand(
    answer: str, repetition: float | None, diversity: float | None
) -> None:
    measured = measure_answer(answer, None)
    assert measured.repetition_2 == (None if repetition is None else pytest.approx(repetition))
    assert measured.log_diversity == (None if diversity is None else pytest.approx(diversity))


def test_measure_answer_complete_repetition() -> None:
    """The diversity of one word in a loop tends to zero from above."""
    measured = measure_answer("word " * 2000, None).log_diversity
    assert measured is not None
    assert 0 < measured < 1e-9
    assert math.copysign(1, measured) == 1


@given(st.lists(english, max_size=5), st.integers(1, 4))
def test_distinct_n_counts_over_all_answers(answers: list[str], n: int) -> None:
    """No n-gram crosses from one answer into the next."""
    found = [gram for answer in answers for gram in grams(answer.split(), n)]
    expected = len(set(found)) / len(found) if found else None
    assert distinct_n(answers, n) == expected


@given(st.lists(english, min_size=1, max_size=4), st.integers(1, 3), st.integers(1, 4))
def test_distinct_n_of_a_repeated_corpus(answers: list[str], n: int, times: int) -> None:
    once = distinct_n(answers, n)
    again = distinct_n(answers[::-1] * times, n)
    assert again == (None if once is None else pytest.approx(once / times))


@given(every_script)
def test_distinct_n_of_one_answer_is_one_minus_repetition(answer: str) -> None:
    repetition = measure_answer(answer, None).repetition_2
    assert distinct_n([answer], 2) == (None if repetition is None else pytest.approx(1 - repetition))


# Overlap with a reference


@given(every_script, every_script)
def test_measure_answer_ranges(answer: str, reference: str) -> None:
    measured = measure_answer(answer, reference)
    assert measured.characters == len(answer)
    assert measured.repetition_2 is None or 0 <= measured.repetition_2 < 1
    assert measured.log_diversity is None or 0 <= measured.log_diversity <= 20 + 1e-9
    assert measured.rouge_l is not None
    assert measured.bleu is not None
    assert measured.chrf is not None
    assert 0 <= measured.rouge_l <= 1
    assert 0 <= measured.bleu <= 100
    assert 0 <= measured.chrf <= 100
    assert measured.exact_match in (0.0, 1.0, None)


@given(every_script)
@example("")
@example("!?")
@example("🙂")
def test_measure_answer_equal_to_its_reference(answer: str) -> None:
    """ROUGE-L is 1, exact match is 1 or None, BLEU and chrF are 100 if there is anything to count."""
    measured = measure_answer(answer, answer)
    assert measured.rouge_l == 1
    assert measured.exact_match in (1.0, None)
    assert measured.bleu == (100.0 if answer.strip() else 0.0)
    assert measured.chrf == (100.0 if answer.strip() else 0.0)


def test_measure_answer_without_a_reference() -> None:
    measured = measure_answer("An answer.", None)
    assert (measured.rouge_l, measured.bleu, measured.chrf, measured.exact_match) == (None, None, None, None)


@given(
    st.text(string.ascii_letters[:6] + "AB 19.,'_-\n", max_size=40),
    st.text(string.ascii_letters[:6] + "AB 19.,'_-\n", max_size=40),
)
def test_measure_answer_rouge_of_plain_english(answer: str, reference: str) -> None:
    expected = RougeScorer(["rougeL"]).score(reference, answer)["rougeL"].fmeasure
    found = measure_answer(answer, reference).rouge_l
    assert found == (1.0 if answer == reference else expected)


@pytest.mark.parametrize("script", UNSPACED)
def test_similarity_of_scripts_without_spaces(script: str) -> None:
    """Two of three characters in common is an F1 of 0.8; rouge_score's own tokenizer drops them all."""
    first, second, third = UNSPACED[script][1]
    assert similarity(first + second, first + second + third) == pytest.approx(0.8)
    assert similarity(first, third) == 0
    sentence = UNSPACED[script][0]
    assert similarity(sentence + "x", sentence) > 0.8
    assert RougeScorer(["rougeL"]).score(sentence, sentence)["rougeL"].fmeasure == 0


@pytest.mark.parametrize("script", SPACED)
def test_similarity_of_scripts_with_spaces(script: str) -> None:
    """A word with one more letter is a different word; one of two words in common is an F1 of 0.5."""
    first, second, third = SPACED[script][1]
    assert similarity(first + second, first + second + third) == 0
    assert similarity(f"{first} {second}", f"{first}, {third}") == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("हिन्दी", "हन्दी", 0.0),  # the vowel sign belongs to its word
        ("น้ำ", "นำ", 0.5),  # n with its tone mark is not n; the vowel is the same
        ("cafe\u0301", "café", 1.0),
        ("CAFÉ", "café", 1.0),
        ("ＡＢＣ １２", "abc 12", 1.0),  # full-width letters
        ("می\u200cخواهم", "می خواهم", 0.0),  # a joiner holds one word together
        ("the cat sat", "the big cat", 2 / 3),
        ("cat the", "the cat", 0.5),  # order counts
        ("", "", 1.0),
        ("", "word", 0.0),
        ("!!!", "???", 0.0),
        ("!!!", "!!!", 1.0),
    ],
)
def test_similarity_by_hand(first: str, second: str, expected: float) -> None:
    assert similarity(first, second) == pytest.approx(expected)


@given(every_script, every_script)
def test_similarity_is_symmetric_and_equals_rouge(first: str, second: str) -> None:
    assert similarity(first, second) == similarity(second, first) == measure_answer(first, second).rouge_l


def test_measure_answer_bleu_and_chrf_by_hand() -> None:
    """Three words of six: full precision up to 3-grams, and e^(1 - 6/3). F2 of precision 1 and recall 7/12."""
    assert measure_answer("the cat sat", "the cat sat on the mat").bleu == pytest.approx(100 * math.exp(-1))
    # The orders that both have: p = 1 and 1, r = 2/3 and 1/2.
    assert measure_answer("ab", "abc").chrf == pytest.approx(100 * 5 * (7 / 12) / (4 + 7 / 12))


@pytest.mark.parametrize("script", ["Han", "Hiragana", "Lao"])
def test_measure_answer_bleu_of_scripts_without_spaces(script: str) -> None:
    """BLEU is that of sacrebleu with spaces between the characters; by words nothing would be in common."""
    reference = UNSPACED[script][0]
    answer = reference[: len(reference) // 2] + UNSPACED[script][1] + "x"
    spaced = BLEU(effective_order=True, tokenize="none").sentence_score(" ".join(answer), [" ".join(reference)])
    found = measure_answer(answer, reference).bleu
    assert found == pytest.approx(spaced.score)
    assert found > 10 * BLEU(effective_order=True, tokenize="none").sentence_score(answer, [reference]).score


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("Paris", "paris.", 1.0),
        (" THE  ANSWER!", "The answer", 1.0),
        ("3 + 5", "3+5", 1.0),
        ("3*5", "3+5", 0.0),
        ("Pari", "Paris", 0.0),
        ("It is Paris.", "Paris", 0.0),
        ("北京。", "北京", 1.0),
        ("?", "!", 0.0),
        ("", "!", 0.0),
        ("-5", "5", 0.0),
        ("-5.", "-5", 1.0),
        ("3.5", "35", 0.0),
        ("5%", "5", 0.0),
        ("“Paris”", "Paris", 1.0),
        ("a b c d e", "a b c d e", 1.0),
        ("a b c d e f", "a b c d e f", None),
        ("天天天天天", "天天天天天", 1.0),
        ("天天天天天天", "天天天天天天", None),
    ],
)
def test_measure_answer_exact_match(answer: str, reference: str, expected: float | None) -> None:
    """Computed for references of up to five words, or characters in scripts without spaces."""
    assert SHORT_REFERENCE == 5
    assert measure_answer(answer, reference).exact_match == expected


def test_signatures_have_settings_and_versions() -> None:
    found = signatures()
    assert list(found) == ["rouge_l", "bleu", "bleu_char", "chrf"]
    assert all("version:" in signature for signature in found.values())
    assert all(setting in found["bleu"] for setting in ("eff:yes", "tok:13a", "smooth:exp"))
    assert "tok:char" in found["bleu_char"]
    assert "nw:0" in found["chrf"]


def test_answer_metrics_imports_no_heavy_library() -> None:
    """The libraries are imported when the first answer is measured."""
    code = "import sys, neftcli.metrics.registry; print({'nltk', 'sacrebleu', 'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
