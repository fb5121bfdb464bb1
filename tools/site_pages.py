"""MkDocs hook: what the site has beside docs/.

- Each ``reference/ROOM.md`` in the navigation of mkdocs.yml becomes the page of ``flowguide.ROOM``, from docstrings.
- Files of the repository that pages link to, such as ../CONTRIBUTING.md or ../benchmarks/nfe.py, become pages under
  ``repository/``. Links stay as they are on a code host, and work on the site too.
- The Markdown of docs/ is copied beside the pages: it is what llms.txt links to.

The pages themselves are Markdown as code hosts show it; ``on_page_markdown`` mends the one place where MkDocs differs.
"""

from __future__ import annotations

import ast
import posixpath
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
CELL_CODE = re.compile(r"`[^`]*`")
# Modules of a room that are imported by their own name.
MORE = {"metrics": {"inception"}, "networks": {"embed"}}
# What a browser would load by itself.
EXTERNAL = re.compile(
    r'<(?:script|img|iframe)[^>]*\bsrc="https?:|<link[^>]*\brel="(?:stylesheet|preconnect)"[^>]*"https?:'
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the reference and of the repository's files."""
    for place in _entries(config.nav):
        if place.startswith("reference/"):
            files.append(File.generated(config, place, content=_reference(Path(place).stem)))
    todo = [file.src_uri for file in files.documentation_pages() if not file.generated_by]
    todo += [place for place in _entries(config.nav) if place.startswith("repository/")]
    seen = set()
    while todo:
        place = todo.pop()
        if place in seen:
            continue
        seen.add(place)
        if place.startswith("repository/"):
            if not (ROOT / _in_repository(place)).is_file():
                raise PluginError(f"there is no file {_in_repository(place)}, which the documentation links to")
            files.append(File.generated(config, place, content=_text(place), inclusion=InclusionLevel.NOT_IN_NAV))
        linked = [_target(place, link) for link in LINK.findall(_text(place))]
        todo += [target for target in linked if target.startswith("repository/")]
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Points links from and to files of the repository to their pages, and unescapes pipes in the code of tables."""
    here = page.file.src_uri
    if here.startswith("reference/"):
        return markdown
    rows = (
        CELL_CODE.sub(lambda code: code[0].replace("\\|", "|"), row) if row.startswith("|") else row
        for row in markdown.split("\n")
    )
    folder = posixpath.dirname(here) or "."
    return LINK.sub(lambda link: posixpath.relpath(_target(here, link[0]), folder), "\n".join(rows))


def on_post_build(config: MkDocsConfig) -> None:
    """Copies the Markdown, and checks that no page loads anything from elsewhere."""
    site = Path(config.site_dir)
    for file in Path(config.docs_dir).glob("*.md"):
        shutil.copy(file, site)
    for file in site.rglob("*.html"):
        if found := EXTERNAL.search(file.read_text()):
            raise PluginError(f"{file.relative_to(site)} needs a network: {found[0]}")


def _entries(nav: Any) -> Iterator[str]:
    """The places of pages in a navigation."""
    for entry in nav.values() if isinstance(nav, dict) else nav:
        if isinstance(entry, str):
            yield entry
        else:
            yield from _entries(entry)


def _in_repository(place: str) -> str:
    """docs/theory.md of theory.md, README.md of repository/README.md, train.py of repository/train.py.md."""
    if not place.startswith("repository/"):
        return f"docs/{place}"
    name = place.removeprefix("repository/")
    return name if (ROOT / name).is_file() else name.removesuffix(".md")


def _target(place: str, link: str) -> str:
    """The place of the page or picture that a link on the page ``place`` leads to."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(_in_repository(place)), link))
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    return f"repository/{target}" + ("" if target.endswith(".md") else ".md")


def _text(place: str) -> str:
    name = _in_repository(place)
    text = (ROOT / name).read_text()
    return text if name.endswith(".md") else f"# {name}\n\n```{Path(name).suffix[1:]}\n{text}```\n"


def _reference(room: str) -> str:
    """The page of a room: its own docstring and names, then those of its modules that are used by name."""
    folder, modules = ROOT / "flowguide" / room, []
    if folder.is_dir():
        source = ast.parse((folder / "__init__.py").read_text())
        names = {alias.name for node in ast.walk(source) for alias in getattr(node, "names", ())}
        names |= MORE.get(room, set())
        inside = sorted(file.stem for file in folder.glob("[!_]*.py"))
        modules = [name for name in inside if name in names or not names]
    parts = [f"# flowguide.{room}", f"::: flowguide.{room}"]
    for module in modules:
        parts += [f"## flowguide.{room}.{module}", f"::: flowguide.{room}.{module}"]
    return "\n\n".join(parts) + "\n"
