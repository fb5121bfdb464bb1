"""The list of mutants follows the code: every one can be made, and the tests that are to kill it are there."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from tools import mutate


@pytest.fixture(scope="module")
def mutants():
    return mutate.read()  # raises where the code of a mutant is not found exactly once


def test_every_mutant_is_another_program(mutants):
    assert len(mutants) >= 200
    assert len({m.source for m in mutants}) == len(mutants)
    for m in mutants:
        ast.parse(m.source)


def test_the_tests_that_are_to_kill_them_exist(mutants):
    for tests in {m.tests for m in mutants}:
        for argument in shlex.split(tests):
            path, *names = argument.split("::")
            if path.endswith(".py"):
                found = (mutate.ROOT / path).read_text()
                assert all(re.search(rf"\bdef {name}\b", found) for name in names), argument


def test_every_module_of_the_core_has_mutants(mutants):
    files = {m.file for m in mutants}
    rooms = [*(mutate.ROOT / "flowguide").glob("*/*.py"), *(mutate.ROOT / "flowguide").glob("*.py")]
    core = {"paths", "times", "condition", "couplings", "losses", "targets", "likelihood", "ema", "posthoc", "chain"}
    core_rooms = {"solvers", "guidance", "tilted", "analytic"}
    for path in rooms:
        if path.stem in core or (path.parent.name in core_rooms and path.stem != "__init__"):
            assert path.relative_to(mutate.ROOT).as_posix() in files, path


def test_a_line_that_cannot_be_followed_is_refused(tmp_path: Path):
    file = tmp_path / "list.toml"
    for line, message in {
        "linear: lambda t: nothing «- → +» t": "once in linear, found it 0 times",
        "trig: «h → 1» * ": "once in trig, found it",
        "missing: «a → b»": "no top-level definition of 'missing'",
        "linear: lambda t: t": "expected a line",
    }.items():
        file.write_text(f"[['flowguide/paths.py']]\ntests = 'tests/test_paths.py'\nmutants = '''\n{line}\n'''\n")
        with pytest.raises(ValueError, match=f"flowguide/paths.py: .*{re.escape(message)}"):
            mutate.read(file)
