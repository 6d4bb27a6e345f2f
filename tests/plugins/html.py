"""HTML as a browser takes it apart."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "input", "br", "rect", "line", "img", "link"}


class Page(HTMLParser):
    """A page's elements and text, and whether its elements are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def check_harmless(self):
        assert {"img", "iframe", "object", "embed"}.isdisjoint(tag for tag, _ in self.elements)
        assert [tag for tag, _ in self.elements].count("script") == 1
        assert not [name for _, attributes in self.elements for name in attributes if name.startswith("on")]
        links = [attributes.get("href") or "" for _, attributes in self.elements]
        assert not [link for link in links if link.startswith(("javascript:", "/", "http"))]
        return self
