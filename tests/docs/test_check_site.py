"""Pages of the documentation load nothing from the network."""

from pathlib import Path

import pytest

from docs.check_site import remote_resources


@pytest.mark.parametrize(
    "content",
    [
        '<img src="https://example.org/a.png">',
        '<script src="//example.org/a.js"></script>',
        '<link rel="stylesheet" href="https://fonts.example.org/css">',
    ],
)
def test_remote_resources_finds_what_a_page_loads(content: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(content, encoding="utf-8")
    assert len(remote_resources(tmp_path)) == 1


def test_remote_resources_finds_addresses_in_styles(tmp_path: Path) -> None:
    (tmp_path / "a.css").write_text("@font-face { src: url(https://example.org/a.woff2) }", encoding="utf-8")
    assert remote_resources(tmp_path) == ["a.css: https://example.org/a.woff2"]


@pytest.mark.parametrize(
    "content",
    ['<a href="https://example.org">a</a>', '<link rel="canonical" href="https://example.org">', '<img src="a.png">'],
)
def test_remote_resources_ignores_links_and_local_files(content: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(content, encoding="utf-8")
    assert remote_resources(tmp_path) == []
