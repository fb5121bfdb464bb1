"""docs/notebooks: each notebook is what its script says and was executed without errors; each script runs."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.support.runs import ROOT

FOLDER = ROOT / "docs" / "notebooks"
SCRIPTS, NOTEBOOKS = sorted(FOLDER.glob("*.py")), sorted(FOLDER.glob("*.ipynb"))
every_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
every_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def cells_of_script(text):
    """Returns (kind, source) of each cell of a script in the percent format."""
    marker = re.compile(r"^# %%( \[markdown\])?\n", re.MULTILINE)
    before, *parts = marker.split(text)
    assert not before.strip()
    cells = []
    for markdown, source in zip(parts[::2], parts[1::2], strict=True):
        source = source.strip("\n")
        if markdown:
            source = "\n".join(line.removeprefix("#").removeprefix(" ") for line in source.split("\n"))
        cells.append(("markdown" if markdown else "code", source))
    return cells


def cells_of_notebook(path):
    """Returns the cells of a notebook, with sources as one text."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in cells]


def test_every_notebook_has_its_script():
    assert len(SCRIPTS) >= 5
    assert len(NOTEBOOKS) >= 2
    assert {path.stem for path in NOTEBOOKS} <= {path.stem for path in SCRIPTS}


@every_notebook
def test_a_notebook_is_built_from_its_script(notebook):
    built = [(cell["cell_type"], cell["source"]) for cell in cells_of_notebook(notebook)]
    assert built == cells_of_script(notebook.with_suffix(".py").read_text(encoding="utf-8")), "run: make notebooks"


@every_notebook
def test_a_notebook_was_executed_and_keeps_nothing_of_the_machine(notebook):
    code = [cell for cell in cells_of_notebook(notebook) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    printed = "".join("".join(output.get("text", [])) for output in outputs)
    assert not re.search(r"/tmp|/home|/root|step/s|0x[0-9a-f]{6}|Warning", printed)
    assert notebook.stat().st_size < 600_000


@pytest.mark.slow
@every_script
def test_a_script_runs_as_plain_python(script, tmp_path):
    env = {**os.environ, "FLOWGUIDE_NOTEBOOK_MINUTES": "0.02", "MPLBACKEND": "Agg", "TMPDIR": str(tmp_path)}
    env["PYTHONPATH"] = str(ROOT)
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
