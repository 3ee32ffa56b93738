"""Pairwise judging, against a real server on 127.0.0.1 that counts its requests and fails on demand.

Oracles: judges with known verdicts (always the first answer; the longer one; a hash of the prompt); the server's own
count of requests, for cost, retries and order; exact fractions, for lengths; a search of every byte written, for
secrets.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
import tempfile
import threading
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neftcli.errors import InputError
from neftcli.evaluation.judge import (
    BUILT_IN_PROMPT,
    AnswerPair,
    JudgedPair,
    JudgeError,
    check_judge,
    find_length_matched,
    judge_pairs,
    parse_verdict,
)
from neftcli.recipe.schema import Judge
from tests.judge_server import (
    PAIRS,
    JudgeServer,
    answers_in,
    completion,
    hashed_verdict,
    judge_of,
    judge_server,
    prefers_longer,
    says,
    silent,
    status,
)

pytestmark = [pytest.mark.allow_hosts(["127.0.0.1"]), pytest.mark.usefixtures("isolated_openai")]

# Verdicts in replies

REPLIES_WITH_A_VERDICT = [
    *[("A", "A"), ("B", "B"), ("TIE", "TIE"), ("a", "A"), ("tie", "TIE"), (" \n B\t\n", "B"), ("A.", "A")],
    *[("**A**", "A"), ("**A.**", "A"), ("**A**.", "A"), ("[[B]]", "B"), ('"TIE"', "TIE"), ("'b'.", "B")],
    *[("`A`", "A"), ("“A”", "A"), ("(A)", "A"), ("Verdict: A", "A"), ("verdict:tie", "TIE")],
    *[("A is vague.\nB is wrong.\nVerdict: A", "A"), ("Reasons.\n\n**Verdict:** [[B]].\n", "B")],
    *[("**Verdict: TIE**", "TIE"), ("Verdict: A\nOn second thought:\nVerdict: B", "B")],
    *[("<think>B? No.\nVerdict: B</think>\n\nA", "A"), (" <think></think>TIE", "TIE")],
]
REPLIES_WITHOUT_A_VERDICT = [
    *["", " ", "C", "A or B", "A B", "AB", "A, because it is right", "Answer A", "The answer is A", "A: B", "TIED"],
    *["A..", "A!", "A?", "1", "AA", "A\nB", "A\nbecause it is right", "Verdict: A\nbut B is good, too", "tıe"],
    *["Verdict: A or B", "My verdict: A", "Verdict A", "Verdict:", "Verdict: ", "verdict", "<think>A", "</think>A"],
    *["<think>A</think>", "A <think>B</think>", "<think>hm</think>A because", "Α", "В", "neither", "None"],
]


@pytest.mark.parametrize(("reply", "verdict"), REPLIES_WITH_A_VERDICT)
def test_parse_verdict_of_a_valid_reply(reply: str, verdict: str) -> None:
    assert parse_verdict(reply) == verdict


@pytest.mark.parametrize("reply", REPLIES_WITHOUT_A_VERDICT)
def test_parse_verdict_of_any_other_reply(reply: str) -> None:
    """Including look-alike Greek and Cyrillic letters, and truncated thoughts."""
    assert parse_verdict(reply) is None


@given(st.text('ABTIEabtie:. \n*[]<>/"verdictk', max_size=30))
def test_parse_verdict_never_guesses(reply: str) -> None:
    """If there is a verdict, the last line has no other letters."""
    verdict = parse_verdict(reply)
    if verdict is not None:
        last = re.sub(r"[^\w\n]", "", re.sub(r"^\s*<think>.*?</think>", "", reply, flags=re.DOTALL)).split()[-1]
        assert last.upper().removeprefix("VERDICT") == verdict


# Both orders


def test_judge_pairs_in_both_orders(server: JudgeServer, tmp_path: Path) -> None:
    """Each pair is two questions, with the answers swapped; the requests have the settings."""
    chosen = judge_of(server, model="the-judge", max_tokens=33, temperature=0.25, timeout=7.5)
    judge_pairs(PAIRS, chosen, tmp_path / "c.jsonl", silent)
    asked = [answers_in(request.prompt) for request in server.requests]
    assert sorted(asked) == sorted(
        places for pair in PAIRS for places in ((pair.answer, pair.opponent), (pair.opponent, pair.answer))
    )
    for request in server.requests:
        assert request.path == "/v1/chat/completions"
        assert {name: request.body[name] for name in ("model", "max_tokens", "temperature")} == {
            "model": "the-judge",
            "max_tokens": 33,
            "temperature": 0.25,
        }
        assert request.headers["x-stainless-read-timeout"] == "7.5"
        assert request.headers["authorization"] == "Bearer none"


words = st.text("abcdefgh ", min_size=1, max_size=12).map(lambda text: f"x{text}y")
pairs_of_words = st.lists(st.builds(AnswerPair, words, words, words), min_size=1, max_size=4)


@settings(deadline=None, max_examples=10)
@given(pairs_of_words)
def test_a_judge_that_likes_a_place_finds_only_ties(pairs: list[AnswerPair]) -> None:
    """Always A, or always B: whoever stands there, so nobody wins."""
    for place in "AB":
        with judge_server(lambda prompt, place=place: place) as server, tempfile.TemporaryDirectory() as folder:
            found = judge_pairs(pairs, judge_of(server), Path(folder) / "c.jsonl", silent)
        assert [judged.score for judged in found] == [0.5] * len(pairs)


@settings(deadline=None, max_examples=10)
@given(pairs_of_words)
def test_judge_pairs_judge_that_prefers_length(pairs: list[AnswerPair]) -> None:
    with judge_server(prefers_longer) as server, tempfile.TemporaryDirectory() as folder:
        found = judge_pairs(pairs, judge_of(server, concurrency=3), Path(folder) / "c.jsonl", silent)
    for pair, judged in zip(pairs, found, strict=True):
        difference = len(pair.answer) - len(pair.opponent)
        assert judged.score == (0.5 if difference == 0 else float(difference > 0))
        assert judged.verdicts == (["opponent", "tie", "answer"][(difference > 0) - (difference < 0) + 1],) * 2


@settings(deadline=None, max_examples=10)
@given(pairs_of_words)
def test_judge_pairs_swapped_answers(pairs: list[AnswerPair]) -> None:
    """The score is 1 - score, from the same replies, with any judge and even without a verdict."""
    swapped = [AnswerPair(pair.instruction, pair.opponent, pair.answer) for pair in pairs]
    other = {"answer": "opponent", "opponent": "answer", "tie": "tie", "unparsed": "unparsed"}
    with judge_server(hashed_verdict) as server, tempfile.TemporaryDirectory() as folder:
        found = judge_pairs(pairs, judge_of(server), Path(folder) / "c.jsonl", silent)
        asked = len(server.requests)
        turned = judge_pairs(swapped, judge_of(server), Path(folder) / "c.jsonl", silent)
        assert len(server.requests) == asked
    for judged, opposite in zip(found, turned, strict=True):
        assert opposite.score == (None if judged.score is None else 1 - judged.score)
        assert opposite.verdicts == tuple(other[verdict] for verdict in reversed(judged.verdicts))


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        (("A", "B"), JudgedPair(1.0, ("answer", "answer"))),
        (("B", "A"), JudgedPair(0.0, ("opponent", "opponent"))),
        (("TIE", "TIE"), JudgedPair(0.5, ("tie", "tie"))),
        (("A", "TIE"), JudgedPair(0.5, ("answer", "tie"))),
        (("TIE", "A"), JudgedPair(0.5, ("tie", "opponent"))),
        (("A", "A"), JudgedPair(0.5, ("answer", "opponent"))),
        (("A", "hm"), JudgedPair(None, ("answer", "unparsed"))),
        (("", "B"), JudgedPair(None, ("unparsed", "answer"))),
        (("hm", "hm"), JudgedPair(None, ("unparsed", "unparsed"))),
    ],
)
def test_judge_pairs_score_of_two_verdicts(
    replies: tuple[str, str], expected: JudgedPair, server: JudgeServer, tmp_path: Path
) -> None:
    """The answer comes first, then the opponent; a pair with an unreadable verdict has no score."""
    server.script = [says(reply) for reply in replies]
    assert judge_pairs(PAIRS[:1], judge_of(server), tmp_path / "c.jsonl", silent) == [expected]


def test_judge_pairs_equal_answers_are_a_tie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Surrounding white space is ignored; no server is running, so no question is sent."""
    pairs = [AnswerPair("q", "same", " same\n"), AnswerPair("q", "", "  ")]
    found = judge_pairs(pairs, Judge(base_url="http://127.0.0.1:9/v1", model="m"), tmp_path / "c.jsonl", silent)
    assert found == [JudgedPair(0.5, ("tie", "tie"))] * 2
    assert judge_pairs([], Judge(base_url="http://127.0.0.1:9/v1", model="m"), tmp_path / "c.jsonl", silent) == []


def test_judge_pairs_concurrency(tmp_path: Path) -> None:
    """Exactly `concurrency` questions are pending at once: each waits at a barrier of that size."""
    meeting, lock, now, most = threading.Barrier(3, timeout=10), threading.Lock(), [0], [0]

    def meet(prompt: str) -> str:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        meeting.wait()
        with lock:
            now[0] -= 1
        return "A"

    pairs = [AnswerPair(f"question {number}", "a", "b") for number in range(6)]
    with judge_server(meet) as server:
        judge_pairs(pairs, judge_of(server, concurrency=3), tmp_path / "c.jsonl", silent)
    assert most == [3]
    assert len(server.requests) == 12


def test_judge_pairs_progress(server: JudgeServer, tmp_path: Path) -> None:
    """Equal answers need no question; cached questions count as done from the start."""
    seen: list[tuple[int, int]] = []
    cache = tmp_path / "c.jsonl"
    judge_pairs(
        [*PAIRS, AnswerPair("q", "s", "s")], judge_of(server), cache, lambda done, total: seen.append((done, total))
    )
    judge_pairs(PAIRS, judge_of(server), cache, lambda done, total: seen.append((done, total)))
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4), (4, 4)]


# Prompts


def test_judge_pairs_custom_prompt(server: JudgeServer, tmp_path: Path) -> None:
    """Placeholders are filled once: dollars in an answer stay; white space around it is stripped."""
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("\ufeffFor $$5: $instruction|${answer_a}|$answer_b|$reference", encoding="utf-8")
    pair = AnswerPair("$answer_b?", " costs $answer_b\n", "$$ \ud800", "é")
    judge_pairs([pair], judge_of(server, prompt=str(prompt)), tmp_path / "c.jsonl", silent)
    assert [request.prompt for request in server.requests] == [
        "For $5: $answer_b?|costs $answer_b|$$ ?|é",
        "For $5: $answer_b?|$$ ?|costs $answer_b|é",
    ]


def test_built_in_prompt() -> None:
    """The built-in prompt is short and names the criteria and the three verdicts."""
    text = BUILT_IN_PROMPT.read_text(encoding="utf-8")
    assert len(text) < 1500
    for part in ("A, B or TIE", "helpfulness", "correctness", "Length", "order", "$instruction"):
        assert part in text


# The cache of replies


def test_judge_pairs_caches_replies(server: JudgeServer, tmp_path: Path) -> None:
    """Cached replies need no server; settings that don't affect a reply are not part of the key."""
    cache = tmp_path / "deep" / "c.jsonl"
    first = judge_pairs(PAIRS, judge_of(server), cache, silent)
    written = cache.read_bytes()
    assert len(server.requests) == 4
    server.always = status(500)
    for change in ({}, {"timeout": 1.0}, {"concurrency": 9}, {"max_retries": 0}, {"base_url": f"{server.url}/"}):
        assert judge_pairs(PAIRS, judge_of(server, **change), cache, silent) == first
    named = server.url.replace("//", "//user:password@")
    assert judge_pairs(PAIRS, judge_of(server, base_url=named), cache, silent) == first
    assert len(server.requests) == 4
    assert cache.read_bytes() == written


@pytest.mark.parametrize(
    "change", [{"model": "n"}, {"max_tokens": 17}, {"temperature": 0.5}, {"prompt": ""}, {"base_url": "other"}]
)
def test_judge_pairs_cache_key(change: dict[str, object], server: JudgeServer, tmp_path: Path) -> None:
    if "prompt" in change:
        change = {"prompt": str(tmp_path / "prompt.txt")}
        (tmp_path / "prompt.txt").write_text("$instruction $answer_a $answer_b")
    if "base_url" in change:
        change = {"base_url": server.url.replace("/v1", "/v2")}
    for chosen in (judge_of(server), judge_of(server, **change)):
        judge_pairs(PAIRS, chosen, tmp_path / "c.jsonl", silent)
    assert len(server.requests) == 8


def test_judge_pairs_equal_questions_are_asked_once(server: JudgeServer, tmp_path: Path) -> None:
    """Pairs with the same texts, even swapped, share their questions."""
    pair = PAIRS[0]
    found = judge_pairs(
        [pair, pair, AnswerPair(pair.instruction, pair.opponent, pair.answer)],
        judge_of(server),
        tmp_path / "c.jsonl",
        silent,
    )
    assert len(server.requests) == 2
    assert found[0] == found[1]


@settings(deadline=None, max_examples=12)
@given(st.data())
def test_judge_pairs_truncated_cache(data: st.DataObject) -> None:
    """Complete lines of a cache truncated at any byte are used, the others are asked again."""
    with judge_server(hashed_verdict) as server, tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "c.jsonl"
        expected = judge_pairs(PAIRS, judge_of(server), cache, silent)
        whole = cache.read_bytes()
        kept = whole[: data.draw(st.integers(0, len(whole)))]
        cache.write_bytes(kept)
        server.requests.clear()
        assert judge_pairs(PAIRS, judge_of(server), cache, silent) == expected
        assert len(server.requests) == 4 - kept.count(b"\n")
        assert sorted(cache.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_judge_pairs_unreadable_cache(tmp_path: Path) -> None:
    """The hint is a command that can be pasted, whatever the folder's name."""
    cache = tmp_path / "a b's" / "c.jsonl"
    cache.mkdir(parents=True)
    with pytest.raises(JudgeError) as caught:
        judge_pairs(PAIRS, VALID_JUDGE, cache, silent)
    [problem] = caught.value.problems
    command = problem.hint.removeprefix("fix its permissions, or ").removesuffix("    to ask the judge again")
    assert shlex.split(command) == ["mv", str(cache), f"{cache}.old"]


def test_judge_pairs_damaged_lines_of_the_cache(server: JudgeServer, tmp_path: Path) -> None:
    cache = tmp_path / "c.jsonl"
    expected = judge_pairs(PAIRS, judge_of(server), cache, silent)
    lines = cache.read_bytes().splitlines()
    cache.write_bytes(
        b"\n".join([b"\xff\xfe", b"[]", b'{"key": 3, "reply": "A"}', b"null", b"[" * 100_000, *lines[2:], b""])
    )
    assert judge_pairs(PAIRS, judge_of(server), cache, silent) == expected
    assert len(server.requests) == 6


def test_judge_pairs_content_of_the_cache(server: JudgeServer, tmp_path: Path) -> None:
    """The cache has a line for each reply, without the prompt; the verdict is parsed from the text each time."""
    cache = tmp_path / "c.jsonl"
    server.judge = lambda prompt: "Well… \ud83d"
    assert judge_pairs(PAIRS[:1], judge_of(server), cache, silent)[0].score is None
    entries = [json.loads(line) for line in cache.read_text(encoding="utf-8").splitlines()]
    for entry in entries:
        assert re.fullmatch("[0-9a-f]{64}", entry.pop("key"))
        assert entry == {
            "server": server.url,
            "model": "m",
            "reply": "Well… \ud83d",
            "usage": {"prompt_tokens": 7, "completion_tokens": 2},
        }
    cache.write_text(cache.read_text().replace(json.dumps("Well… \ud83d"), '"TIE"'))
    assert judge_pairs(PAIRS[:1], judge_of(server), cache, silent) == [JudgedPair(0.5, ("tie", "tie"))]
    assert len(server.requests) == 2


# Checks before the first question

VALID_JUDGE = Judge(base_url="http://127.0.0.1:8000/v1", model="m")


@pytest.mark.parametrize(
    "chosen",
    [
        Judge(),
        VALID_JUDGE,
        replace(VALID_JUDGE, base_url="https://user:pw@example.com"),
        replace(VALID_JUDGE, base_url="http://[::1]:8000/v1/"),
        replace(VALID_JUDGE, base_url="HTTP://my_host.lan:80"),
    ],
)
def test_check_judge_valid(chosen: Judge) -> None:
    """Valid judges pass, and so does no judge at all."""
    check_judge(chosen)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (replace(VALID_JUDGE, model=None), "evaluation.judge.model: the judge needs a model name"),
        (replace(VALID_JUDGE, base_url=None), "evaluation.judge.base_url: a judge needs a server"),
        (Judge(prompt=str(BUILT_IN_PROMPT)), "evaluation.judge.base_url: a judge needs a server"),
        *[
            (replace(VALID_JUDGE, base_url=url), r"base_url must be an http:// or https:// URL without \? and #")
            for url in [
                *["127.0.0.1:8000", "localhost:8000/v1", "ftp://host/v1", "http://", "http:///v1", "file:///etc/hosts"],
                *["http://host:99999/v1", "http://host:0/v1", "http://ho st/v1", "http://host/v1?key=x", "http://[zz]"],
                *["http://host/v1#x", "http://[::1", "http://[1:2]/v1", "http://host/v1\n", "http://hóst/v1"],
            ]
        ],
    ],
)
def test_check_judge_invalid(chosen: Judge, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_judge(chosen)


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        (None, ["can't be read"]),
        (b"caf\xe9 $instruction $answer_a $answer_b", ["a prompt must be UTF-8 text"]),
        (b"", ["placeholders are missing\n  got      $instruction, $answer_a, $answer_b\n"]),
        (b"$instruction $answer_a", ["placeholders are missing\n  got      $answer_b\n"]),
        (b"$instruction $$answer_a $answer_b", ["placeholders are missing\n  got      $answer_a\n"]),
        (b"$instruction $answer_a $answer_b $answer_c", ["unknown placeholder\n  got      $answer_c\n"]),
        (b"$instruction $answer_a $answer_b for 5$ ", ["$ must start a placeholder"]),
        (b"5$ $answer $answer_a", ["must start a placeholder", "are missing", "unknown placeholder"]),
    ],
)
def test_check_judge_invalid_prompt(content: bytes | None, messages: list[str], tmp_path: Path) -> None:
    """The error names the placeholders; all problems are reported together."""
    file = tmp_path / "prompt.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        check_judge(replace(VALID_JUDGE, prompt=str(file)))
    assert len(caught.value.problems) == len(messages)
    for message in (*messages, str(file)):
        assert message in str(caught.value)


def test_check_judge_reports_all_problems_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing package, model, address and prompt, and an invalid key: five problems, without a secret in them."""
    monkeypatch.setitem(sys.modules, "openai", None)
    monkeypatch.setenv("OPENAI_API_KEY", "secret\nkey")
    chosen = Judge(base_url="ftp://user:secret@host", prompt=str(tmp_path))
    for check in (lambda: check_judge(chosen), lambda: judge_pairs(PAIRS, chosen, tmp_path / "c.jsonl", silent)):
        with pytest.raises(InputError) as caught:
            check()
        assert len(caught.value.problems) == 5
        assert "pip install 'neftcli[judge]'" in str(caught.value)
        assert "secret" not in str(caught.value)
    assert not (tmp_path / "c.jsonl").exists()


def test_judge_pairs_without_a_judge(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a judge needs a server"):
        judge_pairs(PAIRS, Judge(), tmp_path / "c.jsonl", silent)


# Lengths


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60))), st.sampled_from([1.0, 1.25, 1.5, 2.0]))
def test_find_length_matched(lengths: list[tuple[int, int]], tolerance: float) -> None:
    """Lengths match within a factor by exact fractions, whichever answer is longer."""
    pairs = [AnswerPair("q", "é" * a, "b" * b) for a, b in lengths]
    turned = [AnswerPair("q", pair.opponent, pair.answer) for pair in pairs]
    expected = [max(a, b) <= Fraction(tolerance) * min(a, b) for a, b in lengths]
    assert find_length_matched(pairs, tolerance) == find_length_matched(turned, tolerance) == expected


def test_find_length_matched_at_the_bound() -> None:
    """The default is a quarter more; 115 characters against 100 are within 1.15 in spite of rounding."""
    assert find_length_matched([AnswerPair("q", "a" * 5, "b" * 4), AnswerPair("q", "a" * 4, "b" * 6)]) == [True, False]
    assert find_length_matched([AnswerPair("q", "a" * 115, "b" * 100)], 1.15) == [True]


def test_judge_server_speaks_the_protocol() -> None:
    """Its replies are valid by the openai client's own types."""
    from openai.types.chat import ChatCompletion

    assert ChatCompletion.model_validate_json(completion("A")).choices[0].message.content == "A"
