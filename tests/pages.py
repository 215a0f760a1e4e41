"""Reading the HTML pages that runs leave: their tables, pictures and whether they stand alone."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser


def pictures(page: str, kind: str) -> list[ET.Element]:
    return [ET.fromstring(svg) for svg in re.findall(rf'<svg class="{kind}".*?</svg>', page, re.S)]


class Tables(HTMLParser):
    """The rows of all tables of a kind: a list of cells, (classes, text) each."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.tables, self.inside, self.cell = kind, [], False, False

    def handle_starttag(self, tag, attrs):
        classes = (dict(attrs).get("class") or "").split()
        if tag == "table":
            self.inside = self.kind in classes
            if self.inside:
                self.tables.append([])
        elif tag == "tr" and self.inside:
            self.tables[-1].append((classes, []))
        elif tag in ("td", "th") and self.inside:
            self.cell = True
            self.tables[-1][-1][1].append([classes, ""])

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cell = False
        elif tag == "table":
            self.inside = False

    def handle_data(self, data):
        if self.cell:
            self.tables[-1][-1][1][-1][1] += data


def tables(page: str, kind: str):
    reader = Tables(kind)
    reader.feed(page)
    return reader.tables


def points(chart: ET.Element, kind: str) -> list[tuple[float, float]]:
    (line,) = (path for path in chart.findall("path") if path.get("class") == kind)
    return [tuple(map(float, p.split())) for p in line.get("d").removeprefix("M").split("L")]


VOID = ("meta", "link", "br")


class Tree(HTMLParser):
    """Whether every tag is closed in its turn, and what the page refers to."""

    def __init__(self):
        super().__init__()
        self.references, self.open, self.tags = [], [], set()

    def handle_starttag(self, tag, attrs):
        self.references += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action")]
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def well_formed(page: str) -> bool:
    tree = Tree()
    tree.feed(page)
    tree.close()
    assert tree.open == []
    assert tree.references == ["data:,"]
    assert "script" not in tree.tags
    for forbidden in ("url(", "@import"):
        assert forbidden not in page
    assert set(re.findall(r"\w+://[^\s\"'<]*", page)) == {"http://www.w3.org/2000/svg"}
    return True
