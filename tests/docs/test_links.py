"""Links, anchors, names and quoted messages of the documentation exist."""

import ast
import importlib
import re
from functools import cache
from pathlib import Path

import pytest

import flowguide
from flowguide.cli.config_flag import load_config
from tests.support.pages import PAGES, blocks, code, prose
from tests.support.runs import ROOT

NAV = re.findall(r"^ +- (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
DOCS = {page.name for page in PAGES if page.parent.name == "docs"}


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page, named as code hosts name headings: lower case, no punctuation, - for a space."""
    headings = re.findall(r"^#+ +(.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"[`*]|\]\(.*?\)", "", h).lower()).replace(" ", "-") for h in headings}


def links(text: str) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match("[a-z]+:", link)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in links(prose(page)):
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.is_file(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_navigation_and_in_the_index_for_language_models():
    index = (ROOT / "docs" / "llms.txt").read_text()
    assert re.match(r"# flowguide\n\n> .+?\n\n", index, re.DOTALL)
    assert sorted(links(index)) == sorted(DOCS) == sorted(place for place in NAV if "/" not in place)
    assert DOCS - {"index.md"} == set(links(prose(ROOT / "docs" / "index.md"))) & DOCS


def test_every_room_has_a_page_in_the_reference():
    rooms = [place.removeprefix("reference/").removesuffix(".md") for place in NAV if place.startswith("reference/")]
    assert sorted(rooms) == sorted(flowguide._ROOMS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_of_the_package_exist(page):
    for name in re.findall(r"\bflowguide(?:\.[A-Za-z_]\w*)+", "\n".join([*code(page), *blocks(page, "python")])):
        _, *parts = name.split(".")
        found, place = flowguide, "flowguide"
        for part in parts:
            place += f".{part}"
            if not hasattr(found, part):
                importlib.import_module(place)  # raises, if it is no module either
            found = getattr(found, part)


def test_times_are_given_of_every_config():
    """The table in docs/training.md names every config, with its number of steps."""
    table = (ROOT / "docs" / "training.md").read_text().partition("## How long it takes")[2]
    found = {}
    for names, steps in re.findall(r"^\| (.+?), ([\d,]+) steps \|", table, re.MULTILINE):
        found |= dict.fromkeys(re.findall(r"`(\w+)`", names), int(steps.replace(",", "")))
    assert found == {file.stem: load_config(str(file)).steps for file in (ROOT / "configs").glob("*.py")}


def templates() -> list[str]:
    """The texts in the sources of flowguide, with … for what is filled in."""
    found = []
    for file in (ROOT / "flowguide").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 500:
                found.append(node.value)
    return found


def test_quoted_messages_are_those_of_the_package():
    """In docs/troubleshooting.md the code in the first column of a table is a message, where it is long enough."""
    rows = re.findall(r"^\| (.*?) \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    quoted = [text for row in rows for text in re.findall(r"`([^`]{12,})`", row)]
    known = templates()
    assert len(quoted) > 30
    for text in quoted:
        parts = text.removeprefix("warning: ").strip("…").split("…")
        pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
        assert any(pattern.search(each) for each in known), text
