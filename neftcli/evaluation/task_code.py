"""Whether a task file of lm-evaluation-harness would run Python code, and templates that can't.

A task file looks like data, but its `!function` tags import Python files, a metric that the harness does not know is
fetched from the hub as code, and its Jinja templates are rendered without a sandbox.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TRUST = "NEFT_TRUST_TASK_CODE"
"""The variable that lets code of task files run: of the environment, so that nobody else's recipe can set it."""

_DATA = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "seq", "map", "merge")}


def code_in_task(file: Path, seen: frozenset[Path] = frozenset()) -> str:
    """What in a task file, or in one that it includes, runs code: "!function utils.docs in task.yaml, line 7" or "".

    Files that can't be read hold none; the harness says what is wrong with them.
    """
    # PyYAML, because what counts is how the harness reads the file, and another reader may find other tags.
    import yaml  # type: ignore[import-untyped]

    try:
        root = yaml.compose(file.read_bytes(), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return ""
    for node in _nodes(root, yaml):
        if node.tag not in _DATA:
            return f"{node.tag} {node.value} in {file.name}, line {node.start_mark.line + 1}"
    settings = yaml.safe_load(file.read_bytes())
    if not isinstance(settings, dict):
        return ""
    if metric := next(filter(None, map(_fetched_metric, _mappings(settings))), ""):
        return f"metric {metric} in {file.name}, which is not the harness's own and would be fetched"
    included = settings.get("include", [])
    paths = [file.parent / str(name) for name in (included if isinstance(included, list) else [included])]
    found = (code_in_task(path, seen | {file}) for path in paths if path not in seen | {file})
    return next(filter(None, found), "")


def _nodes(root: Any, yaml: Any) -> Iterator[Any]:
    """All nodes of a YAML graph, each once: anchors can make it a loop."""
    waiting, known = [root], set()
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in known:
            continue
        known.add(id(node))
        yield node
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    """All mappings in a YAML value, at every depth: a group holds tasks, which hold metrics."""
    waiting, known = [value], set()
    while waiting:
        found = waiting.pop()
        if id(found) in known:
            continue
        known.add(id(found))
        if isinstance(found, dict):
            yield found
            waiting += found.values()
        elif isinstance(found, list):
            waiting += found


def _fetched_metric(settings: dict[str, Any]) -> str:
    """A metric that the harness would take from Hugging Face's evaluate, which runs the metric's own code."""
    metrics = settings.get("metric_list")
    if not isinstance(metrics, list):
        return ""
    import lm_eval.api.metrics  # noqa: F401 - fills the registry
    from lm_eval.api.registry import metric_registry

    for metric in metrics:
        name = metric.get("metric") if isinstance(metric, dict) else None
        if isinstance(name, str) and (name not in metric_registry or metric.get("hf_evaluate")):
            return name
    return ""


@contextmanager
def sandboxed_templates() -> Iterator[None]:
    """Renders the templates of tasks in Jinja's sandbox: any object there leads to all of Python."""
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    plain = utils.env
    utils.env = SandboxedEnvironment(
        loader=plain.loader, undefined=plain.undefined, keep_trailing_newline=plain.keep_trailing_newline
    )
    utils.env.filters.update(plain.filters)
    try:
        yield
    finally:
        utils.env = plain
