"""Checks of the built-in instruction set: its shape, and every answer that can be recomputed.

The answers are recomputed from the text of the prompts, without any knowledge of how the rows
were made. Each check goes through all rows first and then reports every wrong one at once, with
its file and line.
"""

import ast
import calendar
import datetime as dt
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parents[3] / "neftcli/data/builtin"
SPLITS = ("train", "held_out")
KEYS = {"task", "prompt", "completion"}
MIN_ROWS = {"train": 400, "held_out": 100}
MIN_TASKS = 8
MIN_WORDS, MAX_WORDS = 20, 110
MEAN_WORDS = (45.0, 75.0)


@dataclass(frozen=True)
class Row:
    """A row of the set, with its location."""

    split: str
    line: int
    task: str
    prompt: str
    completion: str

    @property
    def location(self) -> str:
        """File and line of the row, for messages."""
        return f"{self.split}.jsonl:{self.line}"

    @property
    def words(self) -> int:
        """Number of words of prompt and completion together."""
        return len(f"{self.prompt} {self.completion}".split())


def raw_lines(split: str) -> list[str]:
    """The lines of one file; only a line feed ends a line."""
    text = (DATA / f"{split}.jsonl").read_text(encoding="utf-8")
    return text.removesuffix("\n").split("\n")


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """All rows of both splits."""
    found = []
    for split in SPLITS:
        for number, line in enumerate(raw_lines(split), start=1):
            found.append(Row(split=split, line=number, **json.loads(line)))
    return found


def of_task(rows: list[Row], task: str) -> list[Row]:
    """The rows of one task; there must be some."""
    chosen = [row for row in rows if row.task == task]
    assert chosen, f"no row has the task {task!r}"
    return chosen


def report(problems: list[str]) -> None:
    """Fail with all problems in one message."""
    assert not problems, f"{len(problems)} problem(s):\n" + "\n".join(problems)


def check(rows: list[Row], judge: Callable[[Row], Iterator[str]]) -> None:
    """Collect the judge's problems with each row, and fail with all of them."""
    report([f"{row.location} [{row.task}] {text}" for row in rows for text in judge(row)])


# ---------------------------------------------------------------------------------------------
# Shape of the files


@pytest.mark.parametrize("split", SPLITS)
def test_builtin_lines_are_objects_with_three_keys(split: str) -> None:
    """Each line is a JSON object with just the three keys and clean, non-empty strings."""
    problems = []
    for number, line in enumerate(raw_lines(split), start=1):
        location = f"{split}.jsonl:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"{location} is not JSON: {error}")
            continue
        if not isinstance(row, dict) or set(row) != KEYS or len(json_keys(line)) != len(KEYS):
            problems.append(f"{location} does not have exactly the keys {sorted(KEYS)}")
            continue
        for key, value in row.items():
            if not isinstance(value, str) or not value.strip():
                problems.append(f"{location} {key} is not a non-empty string")
            elif value != value.strip() or re.search(r"[^\S\n]$", value, re.MULTILINE):
                problems.append(f"{location} {key} has spaces at an end")
            elif any(char != "\n" and not char.isprintable() for char in value):
                problems.append(f"{location} {key} has an odd control or space character")
    report(problems)


def json_keys(line: str) -> list[str]:
    """The keys of a JSON object as written, so that a repeated one shows."""
    pairs: list[tuple[str, Any]] = json.loads(line, object_pairs_hook=list)
    return [key for key, _ in pairs]


@pytest.mark.parametrize("split", SPLITS)
def test_builtin_file_ends_with_one_newline(split: str) -> None:
    """The file has no byte order mark, no carriage returns and one final newline."""
    raw = (DATA / f"{split}.jsonl").read_bytes()
    assert not raw.startswith(b"\xef\xbb\xbf")
    assert b"\r" not in raw
    assert raw.endswith(b"}\n")


def test_builtin_counts(rows: list[Row]) -> None:
    """There are enough rows and tasks, and each task is in both splits in like proportion."""
    sizes = Counter(row.split for row in rows)
    for split, least in MIN_ROWS.items():
        assert sizes[split] >= least, f"{split} has {sizes[split]} rows"
    per_task = {split: Counter(r.task for r in rows if r.split == split) for split in SPLITS}
    assert set(per_task["train"]) == set(per_task["held_out"])
    assert len(per_task["train"]) >= MIN_TASKS
    problems = []
    for task in sorted(per_task["train"]):
        if not re.fullmatch(r"[a-z]+(_[a-z]+)*", task):
            problems.append(f"{task!r} is not in snake_case")
        shares = [per_task[split][task] / sizes[split] for split in SPLITS]
        if abs(shares[0] - shares[1]) > 0.02:
            problems.append(f"{task}: shares differ between the splits: {shares}")
        if not 0.5 < shares[0] * len(per_task["train"]) < 1.5:
            problems.append(f"{task}: too far from an equal share: {shares[0]:.3f}")
    report(problems)


def normalize_prompt(text: str) -> str:
    """Lower case, with every run of punctuation and white space made one space."""
    return re.sub(r"[\W_]+", " ", text.lower()).strip()


def test_builtin_prompts_are_unique(rows: list[Row]) -> None:
    """No two prompts are equal, even if all their numbers are replaced by the same number."""
    problems = []
    for what, change in (("normalised", str), ("number-masked", lambda t: re.sub(r"\d+", "0", t))):
        seen: dict[str, Row] = {}
        for row in rows:
            key = change(normalize_prompt(row.prompt))
            if key in seen:
                problems.append(f"{row.location} repeats the {what} prompt of {seen[key].location}")
            seen.setdefault(key, row)
    report(problems)


def test_builtin_prompts_are_no_near_copies(rows: list[Row]) -> None:
    """No two prompts share half or more of their groups of three words, numbers masked."""
    grams = []
    for row in rows:
        words = re.sub(r"\d+", "0", normalize_prompt(row.prompt)).split()
        grams.append({tuple(words[i : i + 3]) for i in range(len(words) - 2)})
    problems = []
    for (one, a), (two, b) in itertools.combinations(zip(rows, grams, strict=True), 2):
        shared = len(a & b) / max(1, len(a | b))
        if shared >= 0.5:
            problems.append(f"{two.location} is {shared:.0%} like {one.location}")
    report(problems)


def test_builtin_long_completions_are_unique(rows: list[Row]) -> None:
    """No answer of more than ten words is given twice."""
    seen: dict[str, Row] = {}
    problems = []
    for row in rows:
        key = normalize_prompt(row.completion)
        if len(key.split()) > 10 and key in seen:
            problems.append(f"{row.location} repeats the completion of {seen[key].location}")
        seen.setdefault(key, row)
    report(problems)


def test_builtin_word_counts(rows: list[Row]) -> None:
    """Each row is within the bounds, and the mean is near the stated size, in both splits."""

    def judge(row: Row) -> Iterator[str]:
        if not MIN_WORDS <= row.words <= MAX_WORDS:
            yield f"has {row.words} words"

    check(rows, judge)
    for split in SPLITS:
        lengths = [row.words for row in rows if row.split == split]
        mean = sum(lengths) / len(lengths)
        assert MEAN_WORDS[0] <= mean <= MEAN_WORDS[1], f"{split}: mean {mean:.1f} words"


def test_builtin_no_unwanted_strings(rows: list[Row]) -> None:
    """There are no special-token strings, web addresses or real e-mail addresses."""
    unwanted = re.compile(
        r"<\|[^|]*\|>|</?s>|<(?:pad|unk|bos|eos|mask)>|\[/?INST\]|https?:|www\.|"
        r"@(?!example\.org\b)[\w-]+\.\w+",
        re.IGNORECASE,
    )

    def judge(row: Row) -> Iterator[str]:
        for text in (row.prompt, row.completion):
            for match in unwanted.finditer(text):
                yield f"contains {match[0]!r}"

    check(rows, judge)


# ---------------------------------------------------------------------------------------------
# Equations

NUMBER = r"-?\$?\d+(?:,\d{3})*(?:\.\d+)?"
EXPRESSION = rf"\(?{NUMBER}\)?(?: [×÷+\-*/] \(?{NUMBER}\)?)+"
EQUATION = re.compile(rf"(?<![\w.,$(×÷+*/=-])({EXPRESSION}) = ({NUMBER})(?!\w|[.,]\d)")
STRAY_EQUALS = re.compile(r"(?<![=!<>])=(?!=)")


def value_of(text: str) -> Fraction:
    """The value of one number such as "$1,200.50" or "-3"."""
    return Fraction(text.replace("$", "").replace(",", ""))


def numbers_in(text: str) -> list[Fraction]:
    """All numbers of a text, in order; a minus sign counts only after a space or bracket."""
    return [value_of(found) for found in re.findall(rf"(?<!\d)(?<![A-Za-z]){NUMBER}", text)]


def evaluate(expression: str) -> Fraction:
    """Evaluate + - × ÷ and brackets exactly, with the usual order of operations."""
    tokens = re.findall(rf"(?:(?<=^)|(?<=[( ])){NUMBER}(?=[) ]|$)|[()×÷+\-*/]", expression)
    assert "".join(tokens) == expression.replace(" ", ""), f"cannot read {expression!r}"
    value, rest = _sum(tokens)
    assert not rest, f"cannot read {expression!r}"
    return value


def _sum(tokens: list[str]) -> tuple[Fraction, list[str]]:
    """A sum or difference of products."""
    value, tokens = _product(tokens)
    while tokens and tokens[0] in ("+", "-"):
        sign = 1 if tokens[0] == "+" else -1
        term, tokens = _product(tokens[1:])
        value += sign * term
    return value, tokens


def _product(tokens: list[str]) -> tuple[Fraction, list[str]]:
    """A product or quotient of numbers and brackets."""
    value, tokens = _atom(tokens)
    while tokens and tokens[0] in ("×", "*", "÷", "/"):
        operator = tokens[0]
        factor, tokens = _atom(tokens[1:])
        value = value * factor if operator in ("×", "*") else value / factor
    return value, tokens


def _atom(tokens: list[str]) -> tuple[Fraction, list[str]]:
    """A number, or a sum in brackets."""
    if tokens and tokens[0] == "(":
        value, tokens = _sum(tokens[1:])
        assert tokens[:1] == [")"], "bracket not closed"
        return value, tokens[1:]
    assert tokens, "expression ends too early"
    return value_of(tokens[0]), tokens[1:]


def equations_in(text: str) -> list[tuple[str, Fraction]]:
    """The left side, as text, and the stated result of each equation of a text."""
    return [(match[1], value_of(match[2])) for match in EQUATION.finditer(text)]


def equation_problems(text: str) -> Iterator[str]:
    """Yield the problems with the equations of a text."""
    for left, stated in equations_in(text):
        try:
            value = evaluate(left)
        except (AssertionError, ValueError, ZeroDivisionError) as error:
            yield f"{left!r} cannot be evaluated: {error}"
            continue
        if value != stated:
            yield f"{left} is {float(value):g}, not {float(stated):g}"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("So [x]: 3 × 4 = 12.", 0),
        ("We get (68 - 32) × 5 ÷ 9 = 20 degrees.", 0),
        ("Paid $1,200 - $0.50 = $1199.50 in 2019. 2 + 2 × 2 = 6", 0),
        ("It rose: -18 + 15 = -3.", 0),
        ("First 3 × 4 = 13, then 13 + 1 = 15.", 2),
        ("It is (2 + 3 = 5.", 1),
    ],
)
def test_equation_problems(text: str, wrong: int) -> None:
    """Equations are found and judged correctly."""
    assert equations_in(text)
    assert len(list(equation_problems(text))) == wrong


def test_builtin_all_equations_hold(rows: list[Row]) -> None:
    """Every equation in any prompt or completion is true."""

    def judge(row: Row) -> Iterator[str]:
        yield from equation_problems(row.prompt)
        yield from equation_problems(row.completion)

    check(rows, judge)


def test_builtin_all_equations_are_read(rows: list[Row]) -> None:
    """In computed tasks each equals sign of a completion belongs to an equation that was read."""

    def judge(row: Row) -> Iterator[str]:
        signs = len(STRAY_EQUALS.findall(row.completion))
        if signs != len(equations_in(row.completion)):
            yield f"{signs} equals signs, {len(equations_in(row.completion))} equations"

    computed = ("arithmetic_word_problem", "unit_conversion", "date_reasoning", "list_operation")
    check([row for row in rows if row.task in computed], judge)


# Numbers that a word in the prompt brings in, beside its digits.
NUMBER_WORDS = {
    "half|twice|rectangular|there and back": 2,
    "three": 3,
    "dozen": 12,
    "week": 7,
}


def test_builtin_arithmetic_word_problems(rows: list[Row]) -> None:
    """Equations use the numbers of the prompt or earlier results, and the last is the answer."""

    def judge(row: Row) -> Iterator[str]:
        equations = equations_in(row.completion)
        if not equations:
            yield "has no equation"
            return
        prompt_numbers = numbers_in(row.prompt)
        known = set(prompt_numbers)
        for words, number in NUMBER_WORDS.items():
            if re.search(rf"\b(?:{words})\b", row.prompt, re.IGNORECASE):
                known.add(Fraction(number))
        if "%" in row.prompt:
            known.add(Fraction(100))
        if "average" in row.prompt:
            known.add(Fraction(len(prompt_numbers)))
        results: list[Fraction] = []
        for left, result in equations:
            for operand in numbers_in(left):
                if operand not in known:
                    yield f"{float(operand):g} in {left!r} is neither given nor computed before"
                    known.add(operand)
            known.add(result)
            results.append(result)
        later = [number for left, _ in equations[1:] for number in numbers_in(left)]
        for result in results[:-1]:
            if result not in later:
                yield f"the result {float(result):g} is not used"
        if numbers_in(row.completion)[-1] != results[-1]:
            yield "the final number is not the result of the last equation"
        if "$" in row.completion.split("=")[-1].split(".")[0] and not re.search(r"\$[\d.,]*\d[^\d$]*$", row.completion):
            yield "the final amount of money lacks its sign"

    check(of_task(rows, "arithmetic_word_problem"), judge)


# ---------------------------------------------------------------------------------------------
# Unit conversions

# Each unit: the quantity it measures, its size in a base unit, its zero in that base unit.
UNITS: dict[str, tuple[str, Fraction, Fraction]] = {}


def _units(quantity: str, **sizes: str) -> None:
    """Enter units with their sizes; an underscore in a name stands for a space."""
    for name, size in sizes.items():
        UNITS[name.replace("_", " ")] = (quantity, Fraction(size), Fraction(0))


_units(
    "length",
    millimetres="1/1000",
    centimetres="1/100",
    metres="1",
    kilometres="1000",
    inches="0.0254",
    feet="0.3048",
    yards="0.9144",
    miles="1609.344",
    nautical_miles="1852",
    fathoms="1.8288",
)
_units("mass", milligrams="1/1000", grams="1", kilograms="1000", tonnes="1000000")
_units("mass", ounces="28.349523125", pounds="453.59237", stone="6350.29318")
_units("volume", millilitres="1/1000", litres="1")
_units("US volume", teaspoons="1/3", tablespoons="1", cups="16", quarts="64", gallons="256")
_units("time", seconds="1", minutes="60", hours="3600", days="86400", weeks="604800")
_units("long time", months="1", years="12", centuries="1200")
_units("area", square_metres="1", hectares="10000", square_feet="0.09290304")
_units("speed", metres_per_second="1", kilometres_per_hour="5/18")
_units("power", watts="1", kilowatts="1000")
_units("storage", megabits="1", megabytes="8", gigabytes="8000")
# Temperatures; the prompts ask to take 273 as the difference between the Kelvin and Celsius scales.
UNITS["degrees Celsius"] = ("temperature", Fraction(1), Fraction(0))
UNITS["kelvins"] = ("temperature", Fraction(1), Fraction(-273))
UNITS["degrees Fahrenheit"] = ("temperature", Fraction(5, 9), Fraction(-160, 9))
UNIT = "|".join(sorted(map(re.escape, UNITS), key=len, reverse=True))
SOURCE = re.compile(rf"({NUMBER}) ({UNIT})\b")
TARGET = re.compile(rf"\b(?i:how many|in|to|into|of|only (?:shows|accepts|uses)) ({UNIT})\b")
GIVEN_RULE = re.compile(rf"\(Use 1 ([a-z ]+) = ({NUMBER}) ({UNIT})\.\)")


def read_conversion(prompt: str) -> tuple[Fraction, str, str, Fraction | None] | str:
    """The amount, its unit, the wanted unit and a factor given in the prompt, or a complaint."""
    rule = GIVEN_RULE.search(prompt)
    text = GIVEN_RULE.sub("", prompt)
    sources = SOURCE.findall(text)
    if len(sources) != 1:
        return f"no single quantity to convert: {sources}"
    amount, source = sources[0]
    targets = set(TARGET.findall(SOURCE.sub("", text)))
    if len(targets) != 1:
        return f"no single wanted unit: {sorted(targets)}"
    target = targets.pop()
    if source == target or UNITS[source][0] != UNITS[target][0]:
        return f"cannot convert {source} to {target}"
    if rule is None:
        return value_of(amount), source, target, None
    one, factor, many = rule.groups()
    if (f"{one}s", many) != (source, target):
        return f"the given rule is not about {source} and {target}"
    return value_of(amount), source, target, value_of(factor)


def convert(amount: Fraction, source: str, target: str) -> Fraction:
    """Convert exactly with the table of units."""
    _, source_size, source_zero = UNITS[source]
    _, target_size, target_zero = UNITS[target]
    return (amount * source_size + source_zero - target_zero) / target_size


def test_builtin_unit_conversions(rows: list[Row]) -> None:
    """Each conversion is computed again from the amount and the two units in the prompt."""

    def judge(row: Row) -> Iterator[str]:
        read = read_conversion(row.prompt)
        if isinstance(read, str):
            yield f"is recognised by no pattern: {read}"
            return
        amount, source, target, factor = read
        expected = convert(amount, source, target)
        if factor is not None:
            if abs(amount * factor / expected - 1) > Fraction(1, 1000):
                yield f"the given factor {float(factor):g} is wrong"
            expected = amount * factor
        equations = equations_in(row.completion)
        if not equations:
            yield "has no equation"
            return
        if amount not in numbers_in(equations[0][0]):
            yield f"the equation does not start from {float(amount):g}"
        stated = numbers_in(row.completion)[-1]
        if stated != equations[-1][1]:
            yield "the final number is not the result of the last equation"
        if stated != expected:
            yield f"{float(amount):g} {source} are {float(expected):g} {target}, not {stated}"

    check(of_task(rows, "unit_conversion"), judge)


# ---------------------------------------------------------------------------------------------
# Dates

MONTHS = list(calendar.month_name)
MONTH = "|".join(MONTHS[1:])
WEEKDAYS = list(calendar.day_name)
WEEKDAY = "|".join(WEEKDAYS)
DATE = rf"\d{{1,2}} (?:{MONTH}) \d{{4}}"
CLOCK = r"\d{2}:\d{2}"
ISO = r"\d{4}-\d{2}-\d{2}"


def date_of(text: str) -> dt.date:
    """Read a date such as "4 May 2024"."""
    day, month, year = text.split()
    return dt.date(int(year), MONTHS.index(month), int(day))


def date_text(date: dt.date) -> str:
    """Write a date such as "4 May 2024"."""
    return f"{date.day} {MONTHS[date.month]} {date.year}"


def add_days(date: str, days: int) -> str:
    """Return the date N days later."""
    return date_text(date_of(date) + dt.timedelta(days=days))


def add_months(date: str, months: int) -> str:
    """Return the date N months later, or the last day of that month if it is shorter."""
    start = date_of(date)
    year, month = divmod(start.year * 12 + start.month - 1 + months, 12)
    day = min(start.day, calendar.monthrange(year, month + 1)[1])
    return date_text(dt.date(year, month + 1, day))


def add_clock(start: str, minutes: int) -> str:
    """Return the time of day N minutes later."""
    total = (clock_minutes(start) + minutes) % (24 * 60)
    return f"{total // 60:02d}:{total % 60:02d}"


def clock_minutes(text: str) -> int:
    """Minutes since midnight."""
    hours, minutes = text.split(":")
    return int(hours) * 60 + int(minutes)


def age(born: str, on: str) -> int:
    """Completed years of age."""
    start, end = date_of(born), date_of(on)
    return end.year - start.year - ((end.month, end.day) < (start.month, start.day))


def of_three(which: str, text: str) -> str:
    """The earliest or the latest of the dates in a text."""
    dates = [date_of(found) for found in re.findall(DATE, text)]
    assert len(dates) >= 3, "fewer than three dates to compare"
    return date_text(min(dates) if which == "earliest" else max(dates))


@dataclass(frozen=True)
class Rule:
    """A kind of question: its pattern, its correct answer and the form of the answer."""

    pattern: str
    answer: Callable[[re.Match[str]], str]
    form: str


DATE_RULES = [
    Rule(rf"(\d+) days after ({DATE})", lambda m: add_days(m[2], int(m[1])), DATE),
    Rule(rf"(\d+) days before ({DATE})", lambda m: add_days(m[2], -int(m[1])), DATE),
    Rule(rf"(\d+) weeks after ({DATE})", lambda m: add_days(m[2], 7 * int(m[1])), DATE),
    Rule(rf"(\d+) months after ({DATE})", lambda m: add_months(m[2], int(m[1])), DATE),
    Rule(
        rf"^(?=.*day of the week).*?({DATE})",
        lambda m: WEEKDAYS[date_of(m[1]).weekday()],
        WEEKDAY,
    ),
    Rule(
        rf"days (?:there are |are there )?(?:from|between) ({DATE}) (?:to|and) ({DATE})",
        lambda m: str((date_of(m[2]) - date_of(m[1])).days),
        r"\d+",
    ),
    Rule(
        rf"\b({WEEKDAY})\b.*\bin (\d+) days",
        lambda m: WEEKDAYS[(WEEKDAYS.index(m[1]) + int(m[2])) % 7],
        WEEKDAY,
    ),
    Rule(
        r"(?=.*leap year(?!!)).*?\b(\d{4})\b(?=.*leap year|[^0-9]*$)",
        lambda m: "yes" if calendar.isleap(int(m[1])) else "no",
        r"\b(?:yes|no)\b",
    ),
    Rule(
        rf"how many days (?:does )?({MONTH}) (\d{{4}}) ha(?:s|ve)",
        lambda m: str(calendar.monthrange(int(m[2]), MONTHS.index(m[1]))[1]),
        r"\d+",
    ),
    Rule(rf"(?=.*YYYY-MM-DD).*?({DATE})", lambda m: date_of(m[1]).isoformat(), ISO),
    Rule(
        rf"born on ({DATE}).*\bhow old\b.* on ({DATE})|born on ({DATE}).*\bHow old\b.* on ({DATE})",
        lambda m: str(age(m[1] or m[3], m[2] or m[4])),
        r"\d+",
    ),
    Rule(
        rf"\bat ({CLOCK})\b.*?(\d+) hours?(?: and (\d+) minutes)?",
        lambda m: add_clock(m[1], 60 * int(m[2]) + int(m[3] or 0)),
        CLOCK,
    ),
    Rule(
        rf"(?=.*\bminutes\b).*from ({CLOCK}) to ({CLOCK})",
        lambda m: str((clock_minutes(m[2]) - clock_minutes(m[1])) % (24 * 60)),
        r"\d+",
    ),
    Rule(r".*\b(earliest|latest)\b.*", lambda m: of_three(m[1], m[0]), DATE),
    Rule(
        rf"day of the year is ({DATE})",
        lambda m: str(date_of(m[1]).timetuple().tm_yday),
        r"\d+",
    ),
    Rule(
        r"\b(\d{4})\b.*?(\d+)th anniversary",
        lambda m: str(int(m[1]) + int(m[2])),
        r"\d+",
    ),
    Rule(
        rf"(?=.*last day of the month).*?\b({MONTH}) (\d{{4}})",
        lambda m: add_months(f"31 January {m[2]}", MONTHS.index(m[1]) - 1),
        DATE,
    ),
]


def test_builtin_date_reasoning(rows: list[Row]) -> None:
    """Each date question is answered anew from its prompt, by the one rule that fits it."""
    used: set[str] = set()

    def judge(row: Row) -> Iterator[str]:
        fitting = [(r, m) for r in DATE_RULES if (m := re.search(r.pattern, row.prompt))]
        if len(fitting) != 1:
            yield f"is recognised by {len(fitting)} patterns: {[r.pattern for r, _ in fitting]}"
            return
        rule, match = fitting[0]
        used.add(rule.pattern)
        expected = rule.answer(match)
        stated = re.findall(rule.form, row.completion)
        if not stated or stated[-1] != expected:
            yield f"the answer is {expected}, not {stated[-1:] or 'missing'}"

    check(of_task(rows, "date_reasoning"), judge)
    assert len(used) >= 12, f"only {len(used)} kinds of date question"


def test_builtin_stated_weekdays_are_right(rows: list[Row]) -> None:
    """If a text states the weekday of a full date, it is correct."""

    def judge(row: Row) -> Iterator[str]:
        for text in (row.prompt, row.completion):
            for date, day in re.findall(rf"({DATE}) (?:is|was|will be) a ({WEEKDAY})", text):
                if WEEKDAYS[date_of(date).weekday()] != day:
                    yield f"{date} is not a {day}"

    check(rows, judge)


# ---------------------------------------------------------------------------------------------
# Lists

Answer = list[str] | int | str


def lists_in(prompt: str) -> list[list[str]]:
    """The comma-separated lists after a colon in a prompt."""
    found = re.findall(r":\s+([^:?!]+?)(?=[.?!](?:\s|$)|$)", prompt)
    return [part.split(", ") for part in found if ", " in part]


def numbers(items: list[str]) -> list[int]:
    """The items as whole numbers."""
    return [int(item) for item in items]


def keep(items: list[str], good: Callable[[str], bool]) -> list[str]:
    """The items that pass."""
    return [item for item in items if good(item)]


def ranked(items: list[str], key: Callable[[str], Any], down: bool = False) -> list[str]:
    """The items in order; ties would leave the answer open, so there must be none."""
    assert len({key(item) for item in items}) == len(items), "there are ties"
    return sorted(items, key=key, reverse=down)


def parity(word: str) -> Callable[[str], bool]:
    """A test for even or odd numbers."""
    return lambda item: int(item) % 2 == (word == "odd")


def mean(items: list[str]) -> int:
    """The mean, which must be whole."""
    value, rest = divmod(sum(numbers(items)), len(items))
    assert rest == 0, "the mean is not whole"
    return value


ListRule = tuple[str, Callable[[re.Match[str], list[list[str]]], Answer]]
LIST_RULES: list[ListRule] = [
    (r"(?<!reverse )alphabetical order", lambda m, x: ranked(x[0], str.lower)),
    (r"reverse alphabetical order", lambda m, x: ranked(x[0], str.lower, down=True)),
    (r"from smallest to largest", lambda m, x: ranked(x[0], int)),
    (r"from largest to smallest", lambda m, x: ranked(x[0], int, down=True)),
    (r"how many (even|odd) numbers", lambda m, x: len(keep(x[0], parity(m[1])))),
    (r"only the (even|odd) numbers", lambda m, x: keep(x[0], parity(m[1]))),
    (r"more than (\d+) letters", lambda m, x: keep(x[0], lambda i: len(i) > int(m[1]))),
    (r"exactly (\d+) letters", lambda m, x: keep(x[0], lambda i: len(i) == int(m[1]))),
    (r"duplicates", lambda m, x: list(dict.fromkeys(x[0]))),
    (r"second largest number", lambda m, x: sorted(set(numbers(x[0])))[-2]),
    (r"(?<!second )largest number", lambda m, x: max(numbers(x[0]))),
    (r"smallest number", lambda m, x: min(numbers(x[0]))),
    (
        r"difference between the largest and the smallest",
        lambda m, x: max(numbers(x[0])) - min(numbers(x[0])),
    ),
    (r"how many times .*?\"(\w+)\"", lambda m, x: x[0].count(m[1])),
    (r"in reverse order", lambda m, x: x[0][::-1]),
    (r"longest word", lambda m, x: [max(x[0], key=len)]),
    (r"shortest word", lambda m, x: [min(x[0], key=len)]),
    (r"every second item", lambda m, x: x[0][::2]),
    (r"every third item", lambda m, x: x[0][::3]),
    (r"numbers greater than (\d+)", lambda m, x: keep(x[0], lambda i: int(i) > int(m[1]))),
    (r"numbers less than (\d+)", lambda m, x: keep(x[0], lambda i: int(i) < int(m[1]))),
    (r"divisible by (\d+)", lambda m, x: keep(x[0], lambda i: int(i) % int(m[1]) == 0)),
    (r"from shortest to longest", lambda m, x: ranked(x[0], len)),
    (r"in both lists", lambda m, x: keep(x[0], lambda i: i in x[1])),
    (r"in the first list but not in the second", lambda m, x: keep(x[0], lambda i: i not in x[1])),
    (r"\bsum of\b", lambda m, x: sum(numbers(x[0]))),
    (r"\baverage of\b", lambda m, x: mean(x[0])),
    (
        r"(?:begin|start) with the letter (\w)\b",
        lambda m, x: keep(x[0], lambda i: i[0].lower() == m[1].lower()),
    ),
    (
        r"end with the letter (\w)\b",
        lambda m, x: keep(x[0], lambda i: i[-1].lower() == m[1].lower()),
    ),
]


def stated_list(completion: str) -> list[str]:
    """The list after the last colon of the last line."""
    return completion.split("\n")[-1].split(": ")[-1].removesuffix(".").split(", ")


def test_builtin_list_operations(rows: list[Row]) -> None:
    """Each list operation is carried out anew on the list in the prompt."""
    used: set[str] = set()

    def judge(row: Row) -> Iterator[str]:
        fitting = [
            (pattern, rule, match)
            for pattern, rule in LIST_RULES
            if (match := re.search(pattern, row.prompt, re.IGNORECASE))
        ]
        lists = lists_in(row.prompt)
        if len(fitting) != 1 or not lists or min(map(len, lists)) < 3:
            yield f"is recognised by the patterns {[f[0] for f in fitting]}, with the lists {lists}"
            return
        pattern, rule, match = fitting[0]
        used.add(pattern)
        if (len(lists) == 2) != ("second list" in row.prompt.lower()):
            yield f"has {len(lists)} list(s)"
            return
        try:
            expected = rule(match, lists)
        except (AssertionError, ValueError) as error:
            yield f"cannot be computed: {error}"
            return
        if match[0].lower().startswith("how many") and match[1] in ("even", "odd"):
            counted = keep(lists[0], parity(match[1]))
            if f"{', '.join(counted[:-1])} and {counted[-1]}" not in row.completion:
                yield f"does not name the numbers {counted}"
        if isinstance(expected, int):
            stated = numbers_in(row.completion)
            if not stated or stated[-1] != expected:
                yield f"the answer is {expected}, not {stated[-1:] or 'missing'}"
        elif stated_list(row.completion) != expected:
            yield f"the answer is {expected}, not {stated_list(row.completion)}"

    check(of_task(rows, "list_operation"), judge)
    assert len(used) >= 12, f"only {len(used)} kinds of list operation"


# ---------------------------------------------------------------------------------------------
# Extraction and classification


def leaves(value: Any) -> Iterator[Any]:
    """The plain values inside a JSON value."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner)
    else:
        yield value


def json_problems(row: Row) -> Iterator[str]:
    """Yield the problems with a JSON answer."""
    try:
        value = json.loads(row.completion)
    except json.JSONDecodeError as error:
        yield f"is not JSON: {error}"
        return
    for key in value:
        if f'"{key}"' not in row.prompt:
            yield f"the key {key!r} is not asked for"
    asked = set(re.findall(r'"([a-z_]+)"', row.prompt))
    if asked != set(value):
        yield f"the keys asked for are {sorted(asked)}"
    for leaf in leaves(value):
        if isinstance(leaf, bool):
            if "true or false" not in row.prompt:
                yield "a truth value is not asked for"
        elif isinstance(leaf, int | float):
            if Fraction(str(leaf)) not in numbers_in(row.prompt):
                yield f"the number {leaf} is not in the prompt"
        elif not isinstance(leaf, str) or not leaf or leaf not in row.prompt:
            yield f"{leaf!r} is not in the prompt"


def test_builtin_extractions(rows: list[Row]) -> None:
    """A JSON answer parses and has what the prompt says; a field is quoted from the prompt."""

    def judge(row: Row) -> Iterator[str]:
        if row.completion.startswith("{"):
            yield from json_problems(row)
            return
        label, _, value = row.completion.partition(": ")
        if not value or value not in row.prompt:
            yield f"the value {value!r} is not in the prompt"
        if label.lower() not in row.prompt.lower():
            yield f"the field {label!r} is not asked for"

    chosen = of_task(rows, "information_extraction")
    check(chosen, judge)
    as_json = sum(row.completion.startswith("{") for row in chosen)
    assert as_json >= len(chosen) / 2


def test_builtin_class_labels_are_offered(rows: list[Row]) -> None:
    """The label that opens each answer is one that the prompt names, and a reason follows."""

    def judge(row: Row) -> Iterator[str]:
        label, _, reason = row.completion.partition(". ")
        if label.lower() not in re.sub(r'"[^"]*"', "", row.prompt).lower():
            yield f"the label {label!r} is not offered"
        if len(reason.split()) < 6:
            yield "has no reason"

    check(of_task(rows, "text_classification"), judge)


# ---------------------------------------------------------------------------------------------
# Text tasks


def test_builtin_summaries_are_one_sentence(rows: list[Row]) -> None:
    """A summary is a single sentence and is shorter than what it sums up."""

    def judge(row: Row) -> Iterator[str]:
        if re.search(r"[.!?]\s", row.completion) or not row.completion.endswith((".", "!")):
            yield "is not one sentence"
        if len(row.completion.split()) > 0.7 * len(row.prompt.split()):
            yield "is hardly shorter than the text"

    check(of_task(rows, "summarization"), judge)


def test_builtin_corrections_change_the_sentence(rows: list[Row]) -> None:
    """The corrected sentence comes first, differs from the one asked about, and is explained."""

    def judge(row: Row) -> Iterator[str]:
        first = re.match(r'"([^"]+)"|\w+ said, "[^"]+"', row.completion)
        if first is None:
            yield "does not open with the corrected sentence"
            return
        if first[0].strip('"') in row.prompt:
            yield "repeats the faulty sentence"
        if len(row.completion[first.end() :].split()) < 8:
            yield "has no explanation"

    check(of_task(rows, "grammar_correction"), judge)


def test_builtin_rewritings_are_new(rows: list[Row]) -> None:
    """The rewritten text is not simply part of the prompt."""

    def judge(row: Row) -> Iterator[str]:
        if normalize_prompt(row.completion) in normalize_prompt(row.prompt):
            yield "repeats the prompt"

    check(of_task(rows, "rewriting"), judge)


def test_builtin_advice_has_three_points(rows: list[Row]) -> None:
    """Advice is three numbered lines."""

    def judge(row: Row) -> Iterator[str]:
        heads = re.findall(r"^(\d+)\. \S", row.completion, re.MULTILINE)
        if heads != ["1", "2", "3"]:
            yield f"has the points {heads}"

    check(of_task(rows, "short_advice"), judge)


# ---------------------------------------------------------------------------------------------
# Python functions

# For each function: arguments and the result they must give.
EXAMPLES: dict[str, list[tuple[tuple[Any, ...], Any]]] = {
    "count_vowels": [(("Apple Pie",), 4), (("xyz",), 0)],
    "is_even": [((4,), True), ((-3,), False), ((0,), True)],
    "reverse_words": [(("one two  three",), "three two one"), (("",), "")],
    "celsius_to_fahrenheit": [((100,), 212.0), ((-40,), -40.0)],
    "spread": [(([3, 9, -1],), 10), (([5],), 0)],
    "is_palindrome": [(("Level",), True), (("house",), False)],
    "unique_items": [(([3, 1, 3, 2, 1],), [3, 1, 2])],
    "final_price": [((80, 25), 60.0), ((9.99, 10), 8.99)],
    "average": [(([2, 4, 9],), 5.0), (([],), 0)],
    "factorial": [((0,), 1), ((5,), 120)],
    "initials": [(("Ada Rivers",), "A.R."), (("jo van dam",), "J.V.D.")],
    "clamp": [((5, 1, 3), 3), ((0, 1, 3), 1), ((2, 1, 3), 2)],
    "word_count": [(("one  two three",), 3), (("",), 0)],
    "is_leap_year": [((2024,), True), ((1900,), False), ((2000,), True), ((2023,), False)],
    "count_letters": [(("noon",), {"n": 2, "o": 2}), (("",), {})],
    "grade": [((50,), "pass"), ((49,), "fail")],
    "sum_of_digits": [((407,), 11), ((-12,), 3)],
    "minutes_to_clock": [((425,), "07:05"), ((0,), "00:00")],
    "longest_word": [((["ab", "wxyz", "abcd"],), "wxyz")],
    "only_positive": [(([-1, 0, 2, 5],), [2, 5])],
    "fizz": [((9,), "Fizz"), ((10,), "10")],
    "capital_first": [(("hello World",), "Hello World"), (("",), "")],
    "merge_prices": [(({"a": 1, "b": 2}, {"b": 3}), {"a": 1, "b": 3})],
    "second_largest": [(([4, 9, 9, 7],), 7)],
    "area_of_circle": [((1,), 3.141592653589793), ((2,), 12.566370614359172)],
    "has_digit": [(("abc1",), True), (("abc",), False)],
    "flatten": [(([[1, 2], [], [3]],), [1, 2, 3])],
    "greet": [(("Ana",), "Hello, Ana!"), (("",), "Hello, guest!")],
    "common_items": [(([3, 1, 2], [2, 3, 5]), [2, 3])],
    "is_prime": [((1,), False), ((2,), True), ((49,), False), ((97,), True)],
    "sum_even": [(([1, 2, 3, 4],), 6), (([],), 0)],
    "chunk": [(([1, 2, 3, 4, 5], 2), [[1, 2], [3, 4], [5]])],
    "remove_spaces": [((" 12 34-5 ",), "1234-5")],
    "grow": [((100, 0, 5), 100.0), ((200, 100, 2), 800.0)],
    "index_of": [((["a", "b", "b"], "b"), 1), (([], "x"), -1)],
    "lengths": [((["hi", "tree"],), {"hi": 2, "tree": 4})],
    "shorten": [(("abcdef", 3), "abc..."), (("abc", 3), "abc")],
    "countdown": [((3,), [3, 2, 1]), ((0,), [])],
    "to_snake": [(("My First Page",), "my_first_page"), (("  A  b ",), "a_b")],
    "max_key": [(({"Ann": 3, "Bo": 7, "Cy": 7},), "Bo")],
    "all_equal": [(([1, 1],), True), (([1, 2],), False), (([],), True)],
    "gcd": [((12, 18), 6), ((7, 0), 7)],
    "repeat_row": [(("x", 3), "x x x"), (("x", 0), "")],
    "running_total": [(([1, 2, 3],), [1, 3, 6]), (([],), [])],
    "starts_with_vowel": [(("Apple",), True), (("tree",), False), (("",), False)],
}


def load_function(row: Row) -> tuple[str, Callable[..., Any]]:
    """The one function of a completion, from its code block, run in an empty namespace."""
    block = re.match(r"```python\n(.*?)\n```(?:\n[^\n`]+)?\Z", row.completion, re.DOTALL)
    assert block is not None, "is not one code block with at most one line of prose"
    tree = ast.parse(block[1])
    defined = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    others = [n for n in tree.body if not isinstance(n, ast.FunctionDef | ast.Import)]
    assert (len(defined), len(others)) == (1, 0), "does not define just one function"
    signature = f"{defined[0].name}({', '.join(a.arg for a in defined[0].args.args)})"
    assert signature in row.prompt, f"the prompt does not ask for {signature}"
    namespace: dict[str, Any] = {}
    exec(compile(tree, row.location, "exec"), namespace)  # noqa: S102 - our own data
    return defined[0].name, namespace[defined[0].name]


def test_builtin_python_functions(rows: list[Row]) -> None:
    """Each function runs and gives the results in the table."""
    used: Counter[str] = Counter()

    def judge(row: Row) -> Iterator[str]:
        try:
            name, function = load_function(row)
        except Exception as error:
            yield f"cannot be loaded: {error}"
            return
        used[name] += 1
        if not EXAMPLES.get(name):
            yield f"{name} has no example in the table"
            return
        for arguments, expected in EXAMPLES[name]:
            try:
                result = function(*arguments)
            except Exception as error:
                yield f"{name}{arguments} fails: {error!r}"
                continue
            if result != expected or type(result) is not type(expected):
                yield f"{name}{arguments} is {result!r}, not {expected!r}"

    check(of_task(rows, "python_function"), judge)
    report([f"{name} occurs {count} times" for name, count in used.items() if count > 1])
    report([f"no row defines {name}" for name in EXAMPLES if name not in used])
