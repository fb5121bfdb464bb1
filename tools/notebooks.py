#!/usr/bin/env python
"""Builds the notebooks of docs/notebooks: runs each script of cells, and writes an .ipynb with its outputs beside it.

    python tools/notebooks.py               # all
    python tools/notebooks.py story files   # some

The scripts are in jupytext's percent format, which any Python runs as it is. An output should change only if what it
says has changed: progress bars, times, temporary folders and random ids are left out, and pictures are small.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "notebooks"
DPI, COLOURS = 70, 64  # of the pictures
LARGEST = 600_000  # bytes of a notebook
# Lines of a stream that are about this run on this machine: progress bars, seconds, folders.
PASSING = re.compile(
    r"(it|steps?|examples?|samples?)/s|s/(it|step|sample)|samples in|compiled in|the run is in|draw with|warning: "
)
LEFT_OUT = {"image/png": ("text/plain", "image/jpeg"), "text/html": ("text/plain",)}  # of the same output


def build(script: Path) -> None:
    """Runs a script of cells and writes its notebook.

    Raises:
      CellExecutionError: if a cell fails; nothing is written then.
      ValueError: if the notebook is too large to be kept in the repository.
    """
    notebook = jupytext.read(script, fmt="py:percent")
    NotebookClient(notebook, kernel_name="python3", timeout=None, record_timing=False).execute()
    text = nbformat.writes(tidy(notebook)) + "\n"
    if len(text.encode()) > LARGEST:
        raise ValueError(f"{script.stem} has {len(text.encode()):,} bytes, expected at most {LARGEST:,}: draw less")
    script.with_suffix(".ipynb").write_text(text, encoding="utf-8")


def tidy(notebook: NotebookNode) -> NotebookNode:
    """Returns the notebook without what differs from build to build."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = NotebookNode({"kernelspec": kernel, "language_info": {"name": "python"}})
    for i, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{i}", NotebookNode()
        if cell.cell_type == "code":
            cell.outputs = tidy_outputs(cell.outputs)
    return notebook


def tidy_outputs(outputs: Sequence[NotebookNode]) -> list[NotebookNode]:
    """Returns the outputs of a cell: its text in one, without passing lines, and one form of each picture."""
    kept, printed = [], {"stderr": "", "stdout": ""}
    for output in outputs:
        if output.output_type == "stream":
            printed[output.name] += output.text
            continue
        for form, others in LEFT_OUT.items():
            if form in output.data:
                for other in others:
                    output.data.pop(other, None)
        if "image/png" in output.data:
            output.data["image/png"] = smaller(output.data["image/png"])
        kept.append(output)
    text = "".join(map(lasting, printed.values()))
    return [nbformat.v4.new_output("stream", name="stdout", text=text), *kept] if text else kept


def lasting(text: str) -> str:
    """Returns what is printed without its passing lines, and without empty lines at its ends."""
    lines = [line.rstrip() for line in re.split(r"[\r\n]", text) if not PASSING.search(line)]
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")
    return f"{text}\n" if text else ""


def smaller(png: str) -> str:
    """Returns a PNG, in base64, with a palette of few colours."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    content = io.BytesIO()
    image.quantize(COLOURS).save(content, "PNG", optimize=True)
    return base64.b64encode(content.getvalue()).decode()


def main() -> None:
    scripts = {path.stem: path for path in sorted(FOLDER.glob("*.py"))}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(scripts)}; by default all")
    names = parser.parse_args().names or list(scripts)
    if unknown := set(names) - set(scripts):
        parser.error(f"unknown notebooks {', '.join(sorted(unknown))}: there are {', '.join(scripts)}")
    with tempfile.TemporaryDirectory() as settings:
        Path(settings, "matplotlibrc").write_text(f"figure.dpi: {DPI}\n")
        os.environ["MATPLOTLIBRC"] = settings
        for name in names:
            started = time.perf_counter()
            build(scripts[name])
            size = scripts[name].with_suffix(".ipynb").stat().st_size
            print(f"{name}: {time.perf_counter() - started:.0f} s, {size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
