"""Inspected rows as one self-contained HTML file: no script, no network."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

from neftcli.cli.display import format
from neftcli.cli.display.text import sanitize, spell_out
from neftcli.errors import InputError, Problem
from neftcli.events import DataReady, Event, InspectedRow, Notice, Observer, PageWritten
from neftcli.events.data import describe_source
from neftcli.system.files import atomic_write

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
PAGE_MARK = "<!doctype html><!-- neft data inspect -->"
PAGE_TEMPLATE = """\
{{ mark|safe }}
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --back: #fff; --text: #1c1c1c; --dim: #666; --line: #ccc;
  --learned: #c9efd2; --edge: #2e9e4f; --warn: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --back: #16181b; --text: #e4e4e4; --dim: #9a9a9a; --line: #3a3d42;
  --learned: #1d4a2b; --edge: #59c97a; --warn: #e0b050; } }
body { background: var(--back); color: var(--text); font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 70rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1rem; margin: 2rem 0 .4rem; overflow-wrap: anywhere; }
pre { border: 1px solid var(--line); border-radius: 4px; font: 14px/1.9 ui-monospace, monospace; margin: 0;
  overflow-wrap: anywhere; padding: .6rem .8rem; unicode-bidi: isolate; white-space: pre-wrap; }
i { border-right: 1px solid var(--line); font-style: normal; }
i.part { font-size: .7em; opacity: .6; }
i.loss { background: var(--learned); border-bottom: 2px solid var(--edge); font-weight: 600; }
.dim { color: var(--dim); } .warn { color: var(--warn); } ul { padding-left: 1.2rem; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for line in counts %}<p class="dim">{{ line }}</p>
{% endfor %}
{%- if notices %}<ul>
{% for notice in notices %}<li class="warn">{{ notice }}</li>
{% endfor %}</ul>
{% endif %}
<p><i class="loss">green, bold and underlined</i>: tokens that carry loss. A thin line ends each token; point at one to
see its number. Small ones are bytes of the character that follows them.</p>
{% for row in rows %}
<h2>{{ row.head }}</h2>
<pre dir="auto">{% for token in row.tokens %}<i class="{{ token.classes }}" title="{{ token.id }}">\
{{ token.text }}</i>{% if token.breaks %}<br>{% endif %}{% endfor %}</pre>
<p class="{{ 'dim' if row.good else 'warn' }}">{{ row.end }}</p>
{% for note in row.notes %}<p class="warn">{{ note }}</p>
{% endfor %}
{%- endfor %}
</body>
</html>
"""


class Page:
    """Collect rows for a page, pass all other events to a display, and write the page at the end.

    Args:
        path: The file. An existing file is overwritten only if it is such a page.
        display: Receives all events but the rows.

    Raises:
        InputError: The file can't be written, or exists and is not such a page.
    """

    def __init__(self, path: Path, display: Observer) -> None:
        self._path, self._display = path, display
        self._data: DataReady | None = None
        self._notices: list[str] = []
        self._rows: list[InspectedRow] = []
        _require_own(path)

    def __enter__(self) -> Page:
        """Start collecting."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write the page, unless an error was raised."""
        if kind is not None:
            return
        try:
            atomic_write(self._path, self._html())
        except OSError as error:
            raise _unwritable(self._path, error) from None
        self._display.notify(PageWritten(str(self._path), len(self._rows)))

    def notify(self, event: Event) -> None:
        """Collect a row; pass on every other event."""
        if isinstance(event, InspectedRow):
            self._rows.append(event)
            return
        if isinstance(event, DataReady):
            self._data = event
            self._notices += format.data_notices(event)
        elif isinstance(event, Notice):
            self._notices.append(event.message)
        self._display.notify(event)

    def _html(self) -> str:
        from jinja2 import Environment

        data = self._data
        counts = []
        if data:
            counts = [format.data_line(data), format.length_line(data), format.template_text(data)]
            counts += format.unused_lines(data)
        template = Environment(autoescape=True).from_string(PAGE_TEMPLATE)
        return template.render(
            mark=PAGE_MARK,
            title=f"{describe_source(data.source) if data else 'rows'}: tokens with loss",
            counts=[sanitize(line) for line in counts if line],
            notices=[sanitize(notice) for notice in self._notices],
            rows=[_row(event) for event in self._rows],
        )


def _row(event: InspectedRow) -> dict[str, object]:
    """Return the template's values for a row."""
    tokens = []
    for token in event.tokens:
        classes = ["loss"] if token.loss else []
        if BYTE.search(token.text):
            classes.append("part")
        tokens.append(
            {
                "id": token.id,
                "classes": " ".join(classes),
                "text": spell_out(token.text),
                "breaks": token.text.endswith("\n"),
            }
        )
    return {
        "head": format.row_title(event),
        "end": format.row_ending(event),
        "good": format.is_complete(event),
        "notes": [spell_out(note) for note in event.notes],
        "tokens": tokens,
    }


def _require_own(path: Path) -> None:
    """Check that a page can be written here, before rows are read."""
    try:
        if path.is_dir():
            raise InputError(Problem("--html takes a file", f"{path} is a folder", f"--html {path / 'rows.html'}"))
        if not path.parent.is_dir():
            hint = f"mkdir {shlex.quote(str(path.parent))}"
            raise InputError(Problem("--html: there is no such folder", str(path.parent), hint))
        if path.exists() and not path.read_bytes().startswith(PAGE_MARK.encode()):
            problem = "--html: this file exists and is not a page of neft, so it is not overwritten"
            raise InputError(Problem(problem, str(path), "another name"))
        with TemporaryDirectory(dir=path.parent):
            pass
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: Exception) -> InputError:
    got = getattr(error, "strerror", None) or str(error)
    return InputError(Problem(f"--html: {path} can't be written", got, "--html FILE in another folder"))
