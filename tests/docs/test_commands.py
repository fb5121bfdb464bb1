"""Every command that the documentation and the configs show is one that there is, with flags that there are."""

import ast
import importlib
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from absl import flags

from flowguide.cli import COMMANDS, config_flag
from flowguide.cli.command import parse
from tests.support.pages import PAGES, blocks, code
from tests.support.runs import ROOT

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
# What a reader fills in, in flags that take only some values.
FILLED = {"--config=…": "--config=avatars", "--process_id=K": "--process_id=0"}
# Programs that are not flowguide's.
OTHERS = {"export", ".", "pre-commit", "uv", "sbatch", "gcloud", "python3"}


def shown(page: Path) -> list[list[str]]:
    """The commands of a page, or of a config's docstring, each as words."""
    if page.suffix == ".py":
        texts = re.findall(r"^(?:python|flowguide|pip) .*", ast.get_docstring(ast.parse(page.read_text())) or "", re.M)
    else:
        inline = [text for text in code(page) if re.match(r"(python|flowguide|make|pip) \S", text) and "…" not in text]
        texts = [*blocks(page, "sh"), *inline]
    return [words for text in texts for words in commands(text)]


def commands(text: str) -> list[list[str]]:
    """Splits lines of a shell into commands of words, those inside a quoted word too."""
    text = re.sub(r"(^|\s)#.*", r"\1", text.replace("\\\n", " "))  # continued lines, comments
    lexer = shlex.shlex(text, posix=True, punctuation_chars="&|;\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    found: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("&|;\n"):
            found.append([])
        elif "\n" in word:  # what another machine is to run
            found += [*commands(word.partition("=")[2]), []]
        else:
            found[-1].append(FILLED.get(word, word))
    return [words for words in map(ours, found) if words]


def ours(words: list[str]) -> list[str]:
    """A command without variables and launchers before it, and as ``flowguide ...`` if it is; empty if not ours."""
    while words and (re.match(r"\w+=", words[0]) or words[0] == "srun"):
        words = words[1:]
    if not words or words[0] in OTHERS:
        return []
    words = [Path(words[0]).name, *words[1:]]
    if words[:3] == ["python", "-m", "flowguide"]:
        return ["flowguide", *words[3:]]
    if words[0] == "python" and words[1].removesuffix(".py") in COMMANDS:
        return ["flowguide", words[1].removesuffix(".py"), *words[2:]]
    if words[0].startswith("--"):  # settings alone
        return ["flowguide", "train", "--config=avatars", *words]
    return words


def check(words: list[str]) -> None:
    """Raises if there is no such command, or it has no such flag."""
    program, *rest = words
    if program == "flowguide":
        check_flowguide(*rest)
    elif program == "make":
        assert rest[0] in TARGETS, rest
    elif program == "pip":
        for word in rest:
            name, _, extras = word.strip("]").partition("[")
            assert name != "flowguide" or not extras or set(extras.split(",")) <= set(EXTRAS), word
    elif program == "python":
        check_script(*rest)
    else:
        raise AssertionError(f"unknown program {program}: {words}")


def check_flowguide(name: str, *rest: str) -> None:
    if name in ("--version", "--help"):
        return
    command = importlib.import_module(f"flowguide.cli.{name}").COMMAND
    rest = tuple(word.strip("[]") for word in rest)
    if not rest:  # the name of a command, in a sentence
        return
    if any(word.startswith("--data=") for word in rest) and command.takes_config:
        # To choose a config for data, they must be there: the flags are looked up, and another config is taken.
        known = flags.FlagValues()
        config_flag.define_data_flags(known)
        of_data = [word for word in rest if word[2:].partition("=")[0] in known]
        known(["flowguide", *of_data])
        rest = tuple(word for word in rest if word not in of_data)
        rest += () if any(word.startswith("--config=") for word in rest) else ("--config=avatars",)
    parse(command, f"flowguide {name}", list(rest))


def check_script(script: str, *rest: str) -> None:
    if script in ("-m", "-c"):
        assert rest[0] in ("pytest", "venv", "build") or script == "-c", rest
        return
    named = first_arguments(ROOT / script)
    for word in rest:
        if word.endswith(".py"):  # a launcher: the rest are the flags of another script
            check(ours(["python", *rest[rest.index(word) :]]))
            return
        flag = word.partition("=")[0]
        known = named & {flag, flag[2:], flag.removeprefix("--no")}
        assert known or not flag.startswith("--"), f"{script} has no flag {flag}"


def first_arguments(script: Path) -> set[object]:
    """Constants that are the first argument of a call, in a script and in what it imports from its own folder."""
    nodes = list(ast.walk(ast.parse(script.read_text())))
    calls = [node for node in nodes if isinstance(node, ast.Call) and node.args]
    found: set[object] = {a.value for call in calls for a in call.args[:1] if isinstance(a, ast.Constant)}
    imported = {script.with_name(f"{a.name}.py") for node in nodes if isinstance(node, ast.Import) for a in node.names}
    return found.union(*(first_arguments(path) for path in imported if path.exists()))


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "configs").glob("*.py"))], ids=lambda page: page.name)
def test_commands_and_flags_exist(page):
    for words in shown(page):
        check(words)


def test_what_does_not_exist_is_found():
    """The parser of this file sees flags where they are."""
    (words,) = commands('NPROC=16 flowguide sample --workdir=x \\\n  --cond="hat=red" --gama=2   # a comment')
    assert words == ["flowguide", "sample", "--workdir=x", "--cond=hat=red", "--gama=2"]
    with pytest.raises(ValueError, match="unknown flag --gama, did you mean 'gamma'"):
        check(words)
    for line in ("python benchmarks/nfe.py --output=x", "make everything", 'pip install "flowguide[trian]"'):
        with pytest.raises(AssertionError):
            check(commands(line)[0])
    assert sum(len(shown(page)) for page in PAGES) > 60
