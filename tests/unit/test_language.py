"""Language of the project: first lines of docstrings, and the glossary's words to avoid."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("ranet", "cluster", "tuning", "pipelines", "benchmarks", "tests")
FILES = sorted(
    file
    for package in PACKAGES
    for file in (ROOT / package).rglob("*.py")
    if file != Path(__file__)  # has the avoided words
)
DOCUMENTS = sorted(
    [
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "benchmarks").rglob("*.md"),
        *(ROOT / "configs").rglob("*.yaml"),
        *(ROOT / "cluster").rglob("*.sh"),
        ROOT / "README.md",
    ]
)

MAX_WORDS = 12
QUESTION = re.compile(r"(What|Which|Whether|Where|How|By what|Who|When)\b")

AVOIDED = (
    r"signs? of life", r"patience", r"patiently", r"insist\w*", r"gives? up", r"given up",
    r"goes on", r"go on with", r"gone on with", r"anew", r"by the way of", r"by way of",
    r"an earlier start", r"earlier starts?", r"second start", r"lacks?", r"outcomes?", r"tally",
    r"alone or together", r"how sure", r"how right", r"beats", r"beaten by", r"canvas", r"crowded",
    r"yardsticks?", r"sidecars?", r"reclaim\w*", r"take back", r"taken back", r"passes up",
    r"what lies below", r"side by side", r"pictures?", r"cut short", r"the book", r"draws?",
    r"drawn", r"window", r"refus\w*", r"at least as good as no", r"least, most", r"as good as no",
    r"door", r"heart", r"delivery", r"places?", r"address\w*", r"room", r"offers?", r"offered",
)  # fmt: skip
"""Left column of the glossary, as regular expressions; whole words, in any case."""

LEGITIMATE = (
    # Plain technical meanings, as regular expressions of the whole phrase.
    r"address: IP",  # the argument `address` in a docstring
    r"(IP|MAC|network|listen\w*|server|bind|email|loopback|dashboard|Ray'?s?|node'?s?) address\w*",
    r"address\w* (to listen|of (the|a|its|their|Ray|MLflow|this|that) \w+|on (a|the|its) \w+)",
    r"addressing", r"style_addressing", r"in[- ]place", r"placed?", r"decimal places?",
    r"(sliding|shuffl\w+|attention|Hann|time) windows?", r"windows? of (shuffling|images|blocks)",
    r"within one window", r"a window is trained on", r"blocks per window",
    r"Address=\$", r"`ADDRESS`", r"listen-address",
    r"connection refused", r"refused (the )?connection\w*",
    r"(SIGTERM|SIGKILL|delivery) of signals",
    r"side by side (plots?|figures?)", r"RAY_ADDRESS", r"RAY_API_SERVER_ADDRESS",
    r"placement", r"placeholders?", r"replaces?", r"white ?room",
)  # fmt: skip
"""Phrases in which an avoided word has its plain technical meaning."""

AVOIDED_WORD = re.compile(rf"\b({'|'.join(AVOIDED)})\b", re.IGNORECASE)
LEGITIMATE_PHRASE = re.compile("|".join(LEGITIMATE), re.IGNORECASE)


def docstrings(tree: ast.Module) -> Iterator[tuple[ast.AST, str, int]]:
    """Docstrings of modules, classes and functions: node, text, line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node, text, getattr(node, "lineno", 1)


def is_boolean(node: ast.AST) -> bool:
    returns = getattr(node, "returns", None)
    return isinstance(returns, ast.Name) and returns.id == "bool"


def wrong_first_lines(file: Path) -> list[str]:
    """Docstrings whose first line is a question, too long, or without a period."""
    found = []
    for node, text, line in docstrings(ast.parse(file.read_text())):
        first = text.splitlines()[0]
        where = f"{file.relative_to(ROOT)}:{line}: {first}"
        if QUESTION.match(first):
            found.append(f"{where} (begins with a question)")
        if first.startswith("Return whether") and not is_boolean(node):
            found.append(f"{where} (returns no boolean)")
        if len(first.split()) > MAX_WORDS:
            found.append(f"{where} ({len(first.split())} words)")
        if not first.endswith("."):
            found.append(f"{where} (no period)")
    return found


def prose(file: Path) -> Iterator[tuple[int, str]]:
    """Comments, docstrings and string messages of a module: line and text.

    Strings without a space are names, keys and formats rather than messages.
    """
    text = file.read_text()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith(("# fmt", "# pyright")):
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


def avoided_words(
    lines: Iterator[tuple[int, str]] | list[tuple[int, str]],
) -> list[tuple[int, str]]:
    """Line and word of each avoided word that has no plain technical meaning there."""
    return [
        (line, word[0].lower())
        for line, text in lines
        for word in AVOIDED_WORD.finditer(LEGITIMATE_PHRASE.sub("", text))
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_docstring_begins_with_a_short_statement(package: str):
    files = [file for file in FILES if file.is_relative_to(ROOT / package)]
    found = [line for file in files for line in wrong_first_lines(file)]
    assert not found, "\n".join(["", *found])


@pytest.mark.parametrize("package", PACKAGES)
def test_prose_of_a_package_avoids_the_words_of_the_glossary(package: str):
    found = [
        f"{file.relative_to(ROOT)}:{line}: {word}"
        for file in FILES
        if file.is_relative_to(ROOT / package)
        for line, word in avoided_words(prose(file))
    ]
    assert not found, "\n".join(["", *found])


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_document_avoids_the_words_of_the_glossary(file: Path):
    found = avoided_words(list(enumerate(file.read_text().splitlines(), start=1)))
    assert not found, "\n".join(["", *(f"{file.name}:{line}: {word}" for line, word in found)])


def test_a_question_a_long_line_and_an_avoided_word_are_found(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("tests.unit.test_language.ROOT", tmp_path)
    file = tmp_path / "module.py"
    file.write_text(
        '"""What a module is."""\n\n\ndef f():\n    """Return whether it is no boolean."""\n'
        "    # the trial was given up\n    raise ValueError('the run goes on elsewhere')\n"
    )
    assert [line.rpartition("(")[2] for line in wrong_first_lines(file)] == [
        "begins with a question)", "returns no boolean)",
    ]  # fmt: skip
    assert avoided_words(prose(file)) == [(6, "given up"), (7, "goes on")]
    assert not avoided_words([(1, "the IP address of a node; replaced in place")])
