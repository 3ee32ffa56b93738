"""A real judge (slow): SmolLM2-135M-Instruct behind `transformers serve`.

Oracles: the server's process, which has ended when the second call gets its answers; the reply file, read by hand. The
verdicts of such a small model are not asserted: it hardly knows the format.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from neftcli.evaluation.judge import AnswerPair, JudgeError, judge_pairs, parse_verdict
from neftcli.models.gguf import convert_gguf
from neftcli.models.registry import resolve_model
from neftcli.recipe.schema import Judge

pytestmark = [pytest.mark.slow, pytest.mark.allow_hosts(["127.0.0.1"])]

PAIRS = [
    AnswerPair("What is the capital of France?", "The capital of France is Paris.", "Bananas are yellow."),
    AnswerPair("Name three primary colours.", "Red.", "Red, yellow and blue."),
    AnswerPair("Say hello.", "Hello!", "Hello!\n"),
]


class RealServer:
    """`transformers serve` as a process."""

    def __init__(self, model: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        serve = [str(Path(sys.executable).with_name("transformers")), "serve", str(model), "--device", "cpu"]
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [*serve, "--host", "127.0.0.1", "--port", str(port)],
                stdout=output,
                stderr=output,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )

    def wait(self, seconds: float) -> None:
        """Wait until it answers."""
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            assert self.process.poll() is None, self.log.read_text()
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):  # noqa: S310
                    return
            except (urllib.error.URLError, TimeoutError):
                time.sleep(0.5)
        raise AssertionError(self.log.read_text())

    def stop(self) -> None:
        """Stop it, by force if necessary."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def model() -> Path:
    """Return the folder of SmolLM2-135M-Instruct."""
    return convert_gguf(Path(resolve_model("smollm2-135m").location))


@pytest.fixture
def server(model: Path, tmp_path: Path) -> Iterator[RealServer]:
    """Start the server, with the model in memory."""
    running = RealServer(model, tmp_path / "server.log")
    try:
        running.wait(180)
        yield running
    finally:
        running.stop()


def test_judge_pairs_with_a_real_server(server: RealServer, model: Path, tmp_path: Path) -> None:
    """Two pairs in both orders, equal answers without a request; the same from the file; then without a server."""
    cache = tmp_path / "replies.jsonl"
    settings = Judge(base_url=f"{server.url}/v1", model=str(model), concurrency=2, timeout=120, max_retries=1)
    seen: list[tuple[int, int]] = []
    first = judge_pairs(PAIRS, settings, cache, lambda done, total: seen.append((done, total)))
    assert seen == [(done, 4) for done in range(5)]
    entries = [json.loads(line) for line in cache.read_text(encoding="utf-8").splitlines()]
    print(*[(entry["reply"], entry["usage"]) for entry in entries], *first, sep="\n")
    assert len({entry["key"] for entry in entries}) == 4
    for entry in entries:
        assert entry["reply"].strip()
        assert entry["usage"]["prompt_tokens"] > 100
        assert 0 < entry["usage"]["completion_tokens"] <= 16
    unread = sum(parse_verdict(entry["reply"]) is None for entry in entries)
    assert sum(judged.verdicts.count("unparsed") for judged in first) == unread
    assert all((judged.score is None) == ("unparsed" in judged.verdicts) for judged in first)
    assert first[2].score == 0.5

    server.stop()
    assert judge_pairs(PAIRS, settings, cache, lambda done, total: None) == first
    with pytest.raises(JudgeError, match="4 of 6 questions are answered"):
        judge_pairs([*PAIRS, AnswerPair("New?", "a", "b")], settings, cache, lambda done, total: None)


def test_judge_pairs_real_server_rejects_a_different_model(server: RealServer, tmp_path: Path) -> None:
    """It serves one model; its error is quoted at once."""
    settings = Judge(base_url=f"{server.url}/v1", model="somebody/else", timeout=120, max_retries=0)
    with pytest.raises(JudgeError, match="0 of 4 questions are answered") as caught:
        judge_pairs(PAIRS, settings, tmp_path / "replies.jsonl", lambda done, total: None)
    assert "somebody/else" in caught.value.problems[0].got
    assert "fix the cause, then run the same command again" in caught.value.problems[0].hint
