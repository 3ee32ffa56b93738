"""Fail the build of the documentation if a page loads anything from the network (a hook of mkdocs, see mkdocs.yml)."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

LOADED = {("img", "src"), ("script", "src"), ("iframe", "src"), ("link", "href"), ("source", "src"), ("object", "data")}
"""Attributes whose address a browser fetches when it opens the page."""
HARMLESS_LINKS = {"canonical", "prev", "next", "alternate"}
"""Values of `rel` for which a browser fetches nothing."""


class _Resources(HTMLParser):
    """Collects the remote addresses that a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.remote: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if tag == "link" and values.get("rel") in HARMLESS_LINKS:
            return
        for name, value in values.items():
            if (tag, name) in LOADED and value and re.match(r"(https?:)?//", value):
                self.remote.append(value)


def remote_resources(site: Path) -> list[str]:
    """Return "page: address" for every remote resource that a page of the site loads."""
    found = []
    for page in sorted(site.rglob("*.html")):
        parser = _Resources()
        parser.feed(page.read_text(encoding="utf-8"))
        found += [f"{page.relative_to(site)}: {address}" for address in parser.remote]
    for style in sorted(site.rglob("*.css")):
        addresses = re.findall(r"url\([\"']?((?:https?:)?//[^)\"']+)", style.read_text(encoding="utf-8"))
        found += [f"{style.relative_to(site)}: {address}" for address in addresses]
    return found


def on_post_build(config: Any) -> None:
    """Check the site that was built (mkdocs calls this).

    Raises:
        PluginError: A page loads something from the network.
    """
    from mkdocs.exceptions import PluginError

    remote = remote_resources(Path(config.site_dir))
    if remote:
        raise PluginError("pages load from the network:\n" + "\n".join(remote))
