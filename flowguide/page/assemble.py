"""Puts the page together: one HTML file with its styles, script and pictures inside."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from tqdm import tqdm

from flowguide import storage
from flowguide.evaluation.figure import curves as lines_of
from flowguide.evaluation.run import Evaluation
from flowguide.evaluation.table import Table, caption, tables
from flowguide.page import head
from flowguide.page.choices import Plan
from flowguide.page.content import controls, data
from flowguide.page.curves import COLOURS, panels, svg
from flowguide.page.drawing import Pictures, draw


def write(file: Path, found: Evaluation, plan: Plan, *, progress: bool = False) -> None:
    """Draws the samples of a page and writes it.

    Args:
      file: HTML file.
      found: what was measured.
      plan: what the page shows.
      progress: show a progress bar.

    Raises:
      UserError: for samples that are not finite.
      OSError: if the file cannot be written.
    """
    pictures = None
    if plan.kind != "none":
        with tqdm(total=plan.pictures, disable=not progress, unit="picture", dynamic_ncols=True) as bar:
            pictures = draw(plan, found.about["seeds"][0], bar.update)
    storage.replace_text(file, html(found, plan, pictures))


def html(found: Evaluation, plan: Plan, pictures: Pictures | None) -> str:
    """Returns the page. Pictures are those of the plan; None for a page of curves and tables."""
    style, script = _read("page.css"), _read("page.js")
    content, sections = None, ""
    if pictures is not None:
        content = data(found, plan, pictures)
        sections = _explorer(plan) + (_trajectory(plan, pictures) if pictures.trajectory else "")
    legend = [name for name in lines_of(found.rows) if name]
    return _filled(
        "template.html",
        title=escape(f"{found.about['data']['name']}: what guidance buys"),
        style=style,
        style_hash=_hash(style),
        script=script if content else "",
        script_hash=_hash(script if content else ""),
        name=escape(found.about["data"]["name"]),
        lead=escape(head.lead(found)),
        facts=_pairs(head.facts(found, plan)),
        about=_list(head.about(found)),
        legend=_legend(legend),
        curves="".join(f"<figure><figcaption>{escape(p.title)}</figcaption>{svg(p)}</figure>" for p in panels(found)),
        tables="".join(map(_table, tables(found))),
        caption=escape(caption(found)),
        explorer=sections,
        notes="".join(f'<p class="note">{escape(note)}</p>' for note in plan.notes),
        data=f'<script type="application/json" id="data">{_json(content)}</script>' if content else "",
    )


def _explorer(plan: Plan) -> str:
    chosen = "".join(_control(*control, "explorer") for control in controls(plan))
    return _filled("explorer.html", num=plan.num, controls=chosen)


def _trajectory(plan: Plan, pictures: Pictures) -> str:
    chosen = (control for control in controls(plan) if control[0] in ("gamma", "condition"))
    rule = plan.rules[0]
    steps = len(rule.config.grid) - 1 if not isinstance(rule.config.grid, str) else rule.config.steps
    clipped = " Noise is clipped to the range of pixels." if plan.kind == "images" else ""
    grid = f"{steps} step{'s' * (steps > 1)} of {rule.config.solver} with {rule.config.guidance}"
    return _filled(
        "trajectory.html",
        grid=escape(grid),
        clipped=clipped,
        last=len(pictures.t) - 1,
        middle=len(pictures.t) // 2,
        controls="".join(_control(*control, "trajectory") for control in chosen),
    )


def _control(name: str, title: str, texts: Sequence[str], view: str) -> str:
    """Returns a slider for numbers or a list for texts; returns nothing if there is only one choice."""
    if len(texts) < 2:
        return ""
    own, label = f"{view}-{name}", f'<label for="{view}-{name}">{title}</label>'
    if name in ("gamma", "steps"):
        rest = f'<output for="{own}"></output><input type="range" id="{own}" data-control="{name}" min="0" '
        return f'<div class="control">{label}{rest}max="{len(texts) - 1}" step="1"></div>'
    options = "".join(f'<option value="{i}">{escape(text)}</option>' for i, text in enumerate(texts))
    return f'<div class="control">{label}<select id="{own}" data-control="{name}">{options}</select></div>'


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in pairs)


def _list(pairs: Sequence[tuple[str, str]]) -> str:
    return "<ul>" + "".join(f"<li><b>{escape(name)}</b>: {escape(text)}</li>" for name, text in pairs) + "</ul>"


def _legend(names: Sequence[str]) -> str:
    items = "".join(f'<li class="c{i % COLOURS}"><span>{escape(name)}</span></li>' for i, name in enumerate(names))
    return f'<ul class="legend">{items}<li class="real"><span>held-out real examples</span></li></ul>'


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in table.headings)
    rows = [
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(text)}</td>" for text in others)}</tr>'
        for first, *others in table.rows
    ]
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    # A region that scrolls must be reached by the keyboard.
    label = escape(f"table: {', '.join(table.headings)}", quote=True)
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{body}</div>'


def _json(content: Any) -> str:
    """Returns JSON that no HTML parser takes for markup."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _filled(file: str, /, **texts: Any) -> str:
    return Template(_read(file)).substitute(texts)


def _read(name: str) -> str:
    return resources.files("flowguide.page").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Returns the hash by which the page's policy admits this text, and no other script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
