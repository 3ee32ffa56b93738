"""Detection of Python code in task files of lm-evaluation-harness, and sandboxed templates.

A task file looks like data, but its `!function` tags import Python files, unknown metrics are fetched from the hub as
code, and the harness renders its Jinja templates without a sandbox.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neftcli.evaluation.task_files import yaml_nodes

TRUST_VARIABLE = "NEFT_TRUST_TASK_CODE"
"""Environment variable that allows code of task files; not an option, so that no recipe can set it."""

_DATA = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "seq", "map", "merge")}


def code_in_task(file: Path, seen: frozenset[Path] = frozenset()) -> str:
    """Find code in a task file, or in a file that it includes: "!function utils.docs in task.yaml, line 7", or "".

    Unreadable files contain none; the harness reports them.
    """
    # PyYAML, as in the harness: a different parser might see different tags.
    import yaml

    try:
        root = yaml.compose(file.read_bytes(), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return ""
    for node in yaml_nodes(root):
        if node.tag not in _DATA:
            return f"{node.tag} {node.value} in {file.name}, line {node.start_mark.line + 1}"
    settings = yaml.safe_load(file.read_bytes())
    if not isinstance(settings, dict):
        return ""
    for mapping in _mappings(settings):
        metric = _fetched_metric(mapping)
        if metric:
            return f"metric {metric} in {file.name}, which is not one of the harness and would be downloaded"
    included = settings.get("include", [])
    seen |= {file}
    names = included if isinstance(included, list) else [included]
    for name in names:
        path = file.parent / str(name)
        code = "" if path in seen else code_in_task(path, seen)
        if code:
            return code
    return ""


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Yield all mappings in a YAML value at any depth: groups contain tasks, which contain metrics."""
    queue, seen = [value], set()
    while queue:
        item = queue.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, dict):
            yield item
            queue += item.values()
        elif isinstance(item, list):
            queue += item


def _fetched_metric(settings: dict[str, Any]) -> str:
    """Return a metric that the harness would load from Hugging Face's evaluate, which runs the metric's code."""
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
    """Render templates of tasks in Jinja's sandbox, since any object in a template gives access to all of Python."""
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
