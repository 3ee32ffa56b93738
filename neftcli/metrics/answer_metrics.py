"""Metrics of generated answers: repetition, diversity, and similarity to reference answers.

None of them says which answer is better: the NEFTune paper found lower similarity to the references with better
answers, so read them together with a judge.

Scripts without spaces between words (Han, Kana, Thai, Lao, Khmer, Myanmar) are counted by characters.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import regex

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

SHORT_REFERENCE = 5  # words; answers hardly ever equal a longer reference
MIN_REPETITION = math.exp(-20)  # limits log-diversity to 20

# The mark that lengthens vowels in Kana has no script of its own; a combining mark stays with its letter.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ーｰ]"
_UNSPACED_LETTER = regex.compile(_UNSPACED)
_LETTER = regex.compile(r"\p{L}")
_JOINERS = r"\u200c\u200d"  # they occur inside words of Persian and of Indic scripts
_WHITE_SPACE_WORD = regex.compile(rf"{_UNSPACED}\p{{M}}*|(?:(?!{_UNSPACED})\S)+")
_WORD_OF_LETTERS = regex.compile(
    rf"(?=[\p{{L}}\p{{N}}]){_UNSPACED}\p{{M}}*|(?:(?!{_UNSPACED})[\p{{L}}\p{{N}}][\p{{M}}{_JOINERS}]*)+"
)
# Punctuation around a text, which exact match ignores; the minus of a number and a per cent sign count.
_AROUND = regex.compile(r"^(?:(?![-−]\p{N})[\p{P}\s])+|(?:(?!%)[\p{P}\s])+$")
_AT_A_SIGN = regex.compile(r"(?<=[^\w\s]) | (?=[^\w\s])")


@dataclass(frozen=True, slots=True)
class AnswerMetrics:
    """Metrics of one answer; similarities are None without a reference.

    Attributes:
        characters: Unicode characters.
        repetition_2: Share of its 2-grams that repeat an earlier one, 1 - distinct / all; None without 2-grams.
        log_diversity: -log(max(1 - D, e^-20)) with D = (1 - rep_2)(1 - rep_3)(1 - rep_4) and rep_n = 1 - distinct / all
            n-grams; D by Li et al. 2022 (arXiv 2210.15097), its logarithm by Kirchenbauer et al. 2023 (arXiv
            2306.04634), whose measure the NEFTune paper (arXiv 2310.05914) reports. Their code leaves out the last
            n-gram of a text, neft does not. None without 4-grams.
        rouge_l: F1 of the longest common subsequence of words (Lin 2004), 0 to 1.
        bleu: Sentence BLEU by sacrebleu (Post 2018, arXiv 1804.08771), exponentially smoothed, effective order, 0 to
            100.
        chrf: Sentence chrF by sacrebleu, 0 to 100.
        exact_match: 1 if the texts are equal except for case, white space and punctuation around them, else 0; None if
            the reference is longer than `SHORT_REFERENCE` words.
    """

    characters: int
    repetition_2: float | None
    log_diversity: float | None
    rouge_l: float | None
    bleu: float | None
    chrf: float | None
    exact_match: float | None


def measure_answer(answer: str, reference: str | None) -> AnswerMetrics:
    """Compute the metrics of an answer, and its similarity to the reference if there is one."""
    words = _words(answer)
    overlap: dict[str, float | None] = dict.fromkeys(("rouge_l", "bleu", "chrf", "exact_match"))
    if reference is not None:
        bleu = _bleu("char" if _is_mostly_unspaced(reference) else "13a").sentence_score(answer, [reference]).score
        overlap = {
            "rouge_l": similarity(answer, reference),
            "bleu": min(bleu, 100.0),  # rounding can exceed it
            "chrf": _chrf().sentence_score(answer, [reference]).score,
            "exact_match": _exact_match(answer, reference),
        }
    return AnswerMetrics(len(answer), _repetition(words, 2), _log_diversity(words), **overlap)


def distinct_n(answers: Sequence[str], n: int) -> float | None:
    """Compute distinct n-grams over all n-grams of all answers together (Li et al. 2016, arXiv 1510.03055).

    It decreases with the number and length of answers, so compare answers to the same prompts. None without n-grams.
    """
    grams = [gram for answer in answers for gram in _n_grams(_words(answer), n)]
    return len(set(grams)) / len(grams) if grams else None


def similarity(first: str, second: str) -> float:
    """Compute the ROUGE-L F1 of two answers, 0 to 1 and symmetric; 1 for equal texts even without a word."""
    if first == second:
        return 1.0
    return float(_rouge().score(first, second)["rougeL"].fmeasure)


def signatures() -> dict[str, str]:
    """Return how each similarity is computed, for a report: settings and library version."""
    scorers = {"bleu": _bleu("13a"), "bleu_char": _bleu("char"), "chrf": _chrf()}
    for scorer in scorers.values():
        scorer.sentence_score("a", ["a"])  # a scorer has a signature only after its first use
    rouge = f"F1|case:folded|tok:words, characters of scripts without spaces|stem:no|version:{version('rouge-score')}"
    return {"rouge_l": rouge, **{name: str(scorer.get_signature()) for name, scorer in scorers.items()}}


class _AnyScriptTokenizer:
    """Tokenizer for rouge_score, whose own drops everything but a-z and 0-9; both agree on plain English."""

    def tokenize(self, text: str) -> list[str]:
        """Split a text into words of letters and digits, in lower case."""
        return [*_WORD_OF_LETTERS.findall(unicodedata.normalize("NFKC", text).casefold())]


def _words(text: str) -> list[str]:
    """Split a text at white space; each character of a script without spaces is a word."""
    return [*_WHITE_SPACE_WORD.findall(text)]


def _n_grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(n)), strict=False))


def _repetition(words: Sequence[str], n: int) -> float | None:
    """Return rep_n, the share of n-grams that repeat an earlier one."""
    grams = _n_grams(words, n)
    return 1 - len(set(grams)) / len(grams) if grams else None


def _log_diversity(words: Sequence[str]) -> float | None:
    shares = [_repetition(words, n) for n in (2, 3, 4)]
    diversity = math.prod(1 - share for share in shares if share is not None)
    return None if shares[-1] is None else math.log(1 / max(1 - diversity, MIN_REPETITION))


def _exact_match(answer: str, reference: str) -> float | None:
    """Compare the texts; a minus sign or decimal point matters, a final full stop or quotes do not."""
    if len(_words(reference)) > SHORT_REFERENCE:
        return None
    return float(_core(answer) == _core(reference))


def _core(text: str) -> str:
    """Return the text without case, and without surrounding punctuation and white space; a number keeps its sign."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    stripped = _AROUND.sub("", _AT_A_SIGN.sub("", folded))
    return stripped or folded


def _is_mostly_unspaced(text: str) -> bool:
    """Return whether most letters are of a script without spaces."""
    letters = _LETTER.findall(text)
    return 2 * sum(bool(_UNSPACED_LETTER.match(letter)) for letter in letters) > len(letters)


# Loaded when first needed: rouge_score takes a second and a half, most of it for nltk.


@lru_cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_AnyScriptTokenizer())


@lru_cache
def _bleu(tokenizer: Literal["13a", "char"]) -> BLEU:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=tokenizer, smooth_method="exp", effective_order=True)


@lru_cache
def _chrf() -> CHRF:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()
