"""The words and numbers that the terminal and the plain display share."""

from __future__ import annotations

import unicodedata

from rich.text import Text

from neftcli.events import DataReady, ModelReady, NoiseMeasured, Plan, RowsReady, RunFinished, SweepStarted

PLACES = 3
SHORT = 300


def count(number: float) -> str:
    """A count as a person reads it: 420, 38 k, 134.5 M, 6.74 B."""
    if number < 10_000:
        return f"{number:.0f}"
    if number < 1_000_000:
        return f"{number / 1e3:.0f} k"
    return f"{number / 1e6:.1f} M" if number < 1e9 else f"{number / 1e9:.2f} B"


def gibibytes(number: int) -> str:
    """Bytes in GiB."""
    return f"{number / 2**30:.1f} GiB"


def duration(seconds: float) -> str:
    """Seconds as 0:07, 2:51 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def harmless(text: str) -> str:
    """Text of a model or a file without control characters, which could act on a terminal; line breaks stay."""
    return "".join(
        letter if letter == "\n" or unicodedata.category(letter) not in ("Cc", "Cf") else "\N{REPLACEMENT CHARACTER}"
        for letter in text
    )


def shortened(answer: str, style: str = "") -> Text:
    """A prompt or an answer as one harmless line of at most 300 characters."""
    lines = harmless(answer).strip().splitlines()
    shown = " ".join(line.strip() for line in lines if line.strip())
    return Text(shown if len(shown) <= SHORT else shown[: SHORT - 3] + "...", style=style)


def model_line(event: ModelReady) -> str:
    """What is trained."""
    trained = f"{count(event.trainable)} of {count(event.parameters)} trainable"
    return f"{event.name} · {event.method} · {trained} · {event.precision} · {event.device}"


def data_line(event: DataReady) -> str:
    """On what."""
    train, held_out = event.train, event.held_out
    sides = f"{train.rows} to learn from, {held_out.rows or 'none'} held out"
    return f"{event.source} ({event.layout.replace('_', '/')}) · {event.rows_read} rows read: {sides}"


def noise_line(event: NoiseMeasured) -> str:
    """With which noise."""
    if not event.alpha:
        return "NEFTune off (alpha 0): the plain baseline"
    lengths = "real lengths" if event.length == "tokens" else "padded lengths, as Hugging Face scales"
    schedule = "" if event.schedule == "constant" else f" · {event.schedule.replace('_', ' ')}"
    return (
        f"NEFTune alpha {event.alpha:g} · {event.kind} · {lengths}{schedule} "
        f"· noise/embedding {event.ratio:.3f} at layer 0"
    )


def length_line(event: DataReady) -> str:
    """How many tokens carry loss, and how long the rows are."""
    side = event.train
    lengths = f"{side.shortest} to {side.longest} tokens a row, median {side.median}, 9 of 10 at most {side.long}"
    return f"{count(side.loss_tokens)} tokens with loss ({event.loss_on}) · {lengths}"


def data_notices(event: DataReady) -> list[str]:
    """What a person should know about the data before it is trained on."""
    notices = [f"{rows(places)} left out: {reason}" for reason, places in event.unusable.items()]
    if event.unread:
        notices.append(f"columns that are not read: {', '.join(event.unread)}")
    if event.leaked:
        notices.append(f"{event.leaked} training rows left out: their prompts are held out")
    if event.duplicates:
        notices.append(f"{event.duplicates} rows repeat an earlier row, prompt and answer; they are kept")
    if event.train.cut:
        notices.append(f"{rows(event.train.cut)} cut at data.max_length; --max-length keeps more")
    if event.train.without_stop:
        notices.append(f"{rows(event.train.without_stop)} end without a stop token with loss, so don't teach to stop")
    if event.special_text:
        notices.append(f"{rows(event.special_text)} hold a special token as text, and it will act as the token")
    if not event.held_out.rows:
        notices.append(
            "no row is held out (none asked for, too few rows, or all with one prompt), so nothing will show whether "
            "training helped: --held-out FILE"
        )
    used = event.train.rows + event.held_out.rows + event.leaked + sum(map(len, event.unusable.values()))
    if event.rows_read > used:
        notices.append(
            f"{event.rows_read - used} rows are not used: data.max_rows and data.held_out_rows leave them out"
        )
    return notices


def sweep_line(event: SweepStarted) -> str:
    """What a sweep will do."""
    done = sum(state.state == "done" for state in event.cells)
    arms = len({state.arm for state in event.cells})
    seeds = len({state.seed for state in event.cells})
    before = f", {done} of them done before" if done else ""
    return f"{event.folder} · {arms} arms x {seeds} seeds = {len(event.cells)} cells{before}"


def row_notices(event: RowsReady) -> list[str]:
    """What a person should know about the rows that are evaluated on."""
    notices = [f"{rows(places)} left out: {reason}" for reason, places in event.unusable.items()]
    if event.unread:
        notices.append(f"columns that are not read: {', '.join(event.unread)}")
    if event.trained_on:
        notices.append(f"{event.trained_on} rows left out: a model here was trained on their prompts")
    if event.repeated:
        notices.append(f"{event.repeated} rows left out: they repeat an earlier row")
    return notices


def rows(places: tuple[str, ...]) -> str:
    """How many rows, and where the first stand: "3 rows (rows.jsonl, line 17; ...)"."""
    shown = "; ".join(places[:PLACES]) + ("; ..." if len(places) > PLACES else "")
    return f"{len(places)} row{'s' if len(places) > 1 else ''} ({shown})"


def difference(before: float | None, after: float | None) -> str:
    """A difference with its sign."""
    return "-" if before is None or after is None else f"{after - before:+.4f}"


def loss(value: float | None) -> str:
    """A loss, or a dash."""
    return "-" if value is None else f"{value:.4f}"


def next_commands(event: RunFinished) -> list[tuple[str, str]]:
    """What to type next, and why."""
    recipe = f"neft train --recipe {event.run}/recipe.yaml"
    other = "--alpha 0" if event.alpha else "--alpha 5"
    reason = "the same without noise" if event.alpha else "the same with noise"
    if event.held_out_loss is None:
        return []
    compared = f"neft eval {event.run} --baseline THAT_RUN"
    if not event.alpha:
        compared = f"neft eval THAT_RUN --baseline {event.run}"
    return [(f"{recipe} {other}", reason), (compared, "did the noise help? loss, answers, intervals")]


def plan_rows(event: Plan) -> list[tuple[str, str]]:
    """The plan as names and values."""
    free = "" if event.available_bytes is None else f", {gibibytes(event.available_bytes)} free"
    return [
        ("model", f"{event.model}, {event.method}, {count(event.trainable)} of {count(event.parameters)} trainable"),
        ("device", f"{event.device}, {event.precision}"),
        ("updates", "unknown without the data" if event.updates is None else f"{event.updates}"),
        ("weights", gibibytes(event.weights_bytes)),
        ("gradients", gibibytes(event.gradients_bytes)),
        ("optimiser", gibibytes(event.optimizer_bytes)),
        ("activations", f"{gibibytes(event.activations_bytes)} (at the longest row)"),
        ("memory", f"about {gibibytes(event.total_bytes)} in all, the libraries' own aside{free}"),
    ]
