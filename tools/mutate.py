#!/usr/bin/env python
"""Mutation testing: breaks one token of a formula at a time and counts how many mutants the tests kill.

tools/mutants.toml lists the mutants, one per line, ``name: code «old → new» code``: the code must occur exactly once
inside the top-level definition ``name`` of the file. A line that ends in ``  # reason`` is a mutant that no test can be
expected to kill, with the reason; it still counts as survived.

    python tools/mutate.py                      # all mutants, two at a time
    python tools/mutate.py --only=exponential   # those whose file or line matches a regular expression
    python tools/mutate.py --list

Each mutant runs its tests in a forked process that imports the mutated source from memory: no file is changed. Before
that, the same tests run on the original source and must pass. A failed test or a timeout kills a mutant. A mutant that
cannot be imported, or whose tests cannot be collected, is an error.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.abc
import importlib.util
import os
import re
import runpy
import shlex
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "tools" / "mutants.toml"
ENOUGH = 0.95
HEAVY = ("numpy", "scipy.optimize", "scipy.integrate", "scipy.stats", "jax", "optax", "flax.nnx", "diffrax", "pytest")
CHANGE = re.compile("«(.*?) → (.*?)»")


class Mutant(NamedTuple):
    """One change of one file.

    Attributes:
      file: path relative to the root of the repository.
      line: its line in the list.
      tests: arguments for pytest.
      source: the mutated source of the whole file.
      reason: why no test can kill it; empty for mutants that a test must kill.
    """

    file: str
    line: str
    tests: str
    source: str
    reason: str


class Outcome(NamedTuple):
    verdict: str  # "killed", "survived", "timeout" or "error"
    seconds: float
    output: str


def read(path: Path = LIST) -> list[Mutant]:
    """Returns all mutants of a list.

    Raises:
      ValueError: if a line is malformed, or its code does not occur exactly once.
    """
    mutants = []
    for file, groups in tomllib.loads(path.read_text()).items():
        source = (ROOT / file).read_text()
        scopes = _scopes(source)
        for group in groups:
            for line in filter(None, map(str.strip, group["mutants"].splitlines())):
                line, _, reason = line.partition("  # ")
                try:
                    changed = _changed(source, scopes, line.strip())
                except ValueError as error:
                    raise ValueError(f"{file}: {error}: {line}") from None
                mutants.append(Mutant(file, line.strip(), group["tests"], changed, reason.strip()))
    return mutants


def _changed(source: str, scopes: dict[str, tuple[int, int]], line: str) -> str:
    name, separator, code = line.partition(": ")
    if not separator or len(CHANGE.findall(code)) != 1:
        raise ValueError("expected a line 'name: code «old → new» code'")
    if name not in scopes:
        raise ValueError(f"no top-level definition of {name!r}")
    start, end = scopes[name]
    old, new = CHANGE.sub(r"\1", code), CHANGE.sub(r"\2", code)
    if (count := source.count(old, start, end)) != 1:
        raise ValueError(f"expected its code once in {name}, found it {count} times")
    at = source.index(old, start, end)
    return source[:at] + new + source[at + len(old) :]


def _scopes(source: str) -> dict[str, tuple[int, int]]:
    """Returns the start and end offset of each top-level definition."""
    lines = source.splitlines(keepends=True)
    offsets = [0]
    for line in lines:
        offsets.append(offsets[-1] + len(line))
    found = {}
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
        for target in targets:
            name = getattr(target, "name", None) or getattr(target, "id", None)
            if isinstance(name, str):
                found[name] = offsets[node.lineno - 1], offsets[node.end_lineno or node.lineno]
    return found


class _MemoryLoader(SourceFileLoader):
    """Loads a module from source in memory, never from a .pyc."""

    def __init__(self, name: str, path: Path, source: str):
        super().__init__(name, str(path))
        self.source = source

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, self.path, "exec", dont_inherit=True)


class _MutantFinder(importlib.abc.MetaPathFinder):
    """Finds the module that a mutant changes."""

    def __init__(self, mutant: Mutant):
        self.mutant, self.name = mutant, mutant.file.removesuffix(".py").replace("/", ".")

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        loader = _MemoryLoader(fullname, ROOT / self.mutant.file, self.mutant.source)
        return importlib.util.spec_from_file_location(fullname, loader.path, loader=loader)


def test(tests: str, mutant: Mutant | None, cache: Path) -> int:
    """Runs tests in this process, on a mutant or on the original source, and returns pytest's exit code."""
    import jax
    import pytest

    # Only programs of the original source are worth caching.
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e6 if mutant else 0)
    if mutant:
        sys.meta_path.insert(0, _MutantFinder(mutant))
    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", "--rootdir", str(ROOT)]
    return int(pytest.main([*options, *shlex.split(tests)]))


class Job(NamedTuple):
    tests: str
    mutant: Mutant | None
    limit: float  # seconds


class _Running(NamedTuple):
    job: Job
    slot: int
    since: float
    output: Path


def run(jobs: Sequence[Job], caches: Sequence[Path]) -> Iterator[tuple[Job, Outcome]]:
    """Runs each job in a forked process, one at a time per cache, and yields it when it has ended."""
    waiting, running, free = list(reversed(jobs)), {}, list(range(len(caches)))
    folder = Path(tempfile.mkdtemp(prefix="flowguide-mutants-"))
    try:
        while waiting or running:
            while waiting and free:
                job, slot = waiting.pop(), free.pop()
                output = folder / f"{slot}.txt"
                running[_fork(job, caches[slot], output)] = _Running(job, slot, time.monotonic(), output)
            time.sleep(0.02)
            for pid, now in list(running.items()):
                seconds = time.monotonic() - now.since
                late = seconds > now.job.limit
                if late:
                    os.killpg(pid, signal.SIGKILL)
                ended, status = os.waitpid(pid, 0 if late else os.WNOHANG)
                if not ended:
                    continue
                del running[pid]
                free.append(now.slot)
                verdict = {0: "survived", 1: "killed"}.get(os.waitstatus_to_exitcode(status), "error")
                yield now.job, Outcome("timeout" if late else verdict, seconds, now.output.read_text(errors="replace"))
    finally:
        for pid in running:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        shutil.rmtree(folder)


def _fork(job: Job, cache: Path, output: Path) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 3
    try:
        os.setsid()  # a process group of its own, so that killing it kills its children too
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        code = test(job.tests, job.mutant, cache)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def prepare() -> None:
    """Imports the slow dependencies, in the environment of the tests, but nothing of flowguide."""
    os.environ["FLOWGUIDE_TESTS"] = "quick"
    runpy.run_path(str(ROOT / "tests" / "conftest.py"))  # sets environment variables that JAX reads on import
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    for name in HEAVY:
        importlib.import_module(name)
    # JAX has no backend yet, so it has no threads that a fork could lose.
    warnings.filterwarnings("ignore", message=r"os\.fork\(\)")
    loaded = [name for name in sys.modules if name.split(".")[0] == "flowguide"]
    assert not loaded, f"flowguide is already imported: {loaded}"


def share(caches: Sequence[Path]) -> None:
    """Copies the entries of each cache to all others, as hard links."""
    for source in caches:
        for file in source.iterdir():
            for target in caches:
                if not (target / file.name).exists():
                    os.link(file, target / file.name)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="PATTERN", help="regular expression over 'file: line'")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="mutants at a time (default: %(default)s)")
    parser.add_argument("--verbose", action="store_true", help="print the test that killed each mutant")
    args = parser.parse_args(arguments)

    chosen = [m for m in read() if re.search(args.only, f"{m.file}: {m.line}")]
    if not chosen:
        parser.error(f"no mutant matches {args.only!r}")
    if args.list:
        for m in chosen:
            print(f"{m.file}: {m.line}" + (f"  # {m.reason}" if m.reason else ""))
        print(f"{len(chosen)} mutants")
        return 0

    prepare()
    caches = [Path(tempfile.gettempdir()) / f"flowguide-mutants-cache-{i}" for i in range(max(args.workers, 1))]
    for cache in caches:
        cache.mkdir(exist_ok=True)
    selections = list(dict.fromkeys(m.tests for m in chosen))
    seconds = {}
    for job, outcome in progress("original source", run([Job(t, None, 600.0) for t in selections], caches), selections):
        if outcome.verdict != "survived":
            print(f"\nThese tests do not pass on the original source: {job.tests}\n{outcome.output[-3000:]}")
            return 2
        seconds[job.tests] = outcome.seconds
    share(caches)
    jobs = [Job(m.tests, m, 60 + 5 * seconds[m.tests]) for m in chosen]
    outcomes = {}
    for job, outcome in progress("mutants", run(jobs, caches), jobs):
        outcomes[job.mutant] = outcome
        if args.verbose or outcome.verdict == "error":
            _print_outcome(job.mutant, outcome)
    return report(outcomes)


def progress(what: str, jobs: Iterator[tuple[Job, Outcome]], all_jobs: Sequence[Any]) -> Iterator[tuple[Job, Outcome]]:
    from tqdm import tqdm

    return iter(tqdm(jobs, what, total=len(all_jobs), mininterval=5, smoothing=0.05))


def _print_outcome(mutant: Mutant | None, outcome: Outcome) -> None:
    write: Callable[..., object] = importlib.import_module("tqdm").tqdm.write
    assert mutant is not None
    write(f"{outcome.verdict:8} {outcome.seconds:5.1f} s  {mutant.file}: {mutant.line}")
    lines = outcome.output.strip().splitlines()
    shown = lines[-15:] if outcome.verdict == "error" else [s for s in lines if s.startswith("FAILED")]
    write("".join(f"    {line[:160]}\n" for line in shown), end="")


def report(outcomes: dict[Mutant, Outcome]) -> int:
    """Prints the number of killed mutants per file, and the survivors; returns the exit code."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for mutant, outcome in outcomes.items():
        counts[mutant.file][0] += 1
        counts[mutant.file][1] += outcome.verdict in ("killed", "timeout")
    print(f"\n{'':44}killed    of")
    for file, (count, killed) in counts.items():
        print(f"{file:44}{killed:6}{count:6}")

    def show(title: str, found: list[Mutant]) -> None:
        if found:
            print(f"\n{title}")
        for m in found:
            print(f"  {m.file}: {m.line}" + (f"\n      {m.reason}" if m.reason else ""))

    def those(*verdicts: str, reason: bool | None = None) -> list[Mutant]:
        return [m for m, o in outcomes.items() if o.verdict in verdicts and reason in (None, bool(m.reason))]

    errors = those("error")
    show("Error: the mutant cannot be imported, or its tests cannot be collected", errors)
    show("Killed by a timeout", those("timeout"))
    show("Killed, although its line gives a reason to survive: delete the reason", those("killed", reason=True))
    show("Survived, with a reason", those("survived", reason=True))
    show("Survived", those("survived", reason=False))
    killed, total = sum(k for _, k in counts.values()), len(outcomes)
    print(f"\n{killed} of {total} mutants killed: {100 * killed / total:.1f} %")
    return int(bool(errors) or killed < ENOUGH * total)


if __name__ == "__main__":
    sys.exit(main())
