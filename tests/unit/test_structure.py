"""Structure of the project: sizes of folders, files and functions; imports."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("ranet", "cluster", "tuning", "pipelines")
FILES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))

MAX_MODULES = 14
MAX_LINES = 450
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 6


def is_entry_script(file: Path) -> bool:
    return 'if __name__ == "__main__":' in file.read_text()


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}


def imports_of(file: Path) -> set[str]:
    """Modules of this project that a module imports, also inside functions.

    Imports under `if TYPE_CHECKING` do not happen.
    """
    found = set()
    waiting: list[ast.AST] = [ast.parse(file.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                found.add(inner if inner in MODULES else node.module)
        waiting += ast.iter_child_nodes(node)
    return found & (MODULES.keys() - {module_of(file)})


def test_folders_have_few_modules():
    counts: dict[Path, list[str]] = defaultdict(list)
    for file in FILES:
        if file.name != "__init__.py" and not is_entry_script(file):
            counts[file.parent].append(file.name)
    crowded = {
        str(folder.relative_to(ROOT)): names
        for folder, names in counts.items()
        if len(names) > MAX_MODULES
    }
    assert not crowded


def test_files_are_short():
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in FILES}
    assert not {name: length for name, length in lengths.items() if length > MAX_LINES}


def functions(file: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(file.read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def test_functions_are_short():
    found = {
        node.name
        for file in FILES
        for node in functions(file)
        if (node.end_lineno or node.lineno) - node.lineno + 1 > MAX_FUNCTION_LINES
    }
    assert not found


def test_functions_have_few_parameters():
    found = set()
    for file in FILES:
        for node in functions(file):
            given = node.args
            names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            if "ctx" in names:  # torch.autograd.Function: each tensor is a parameter of its own
                continue
            if len([name for name in names if name not in ("self", "cls")]) > MAX_PARAMETERS:
                found.add(node.name)
    assert not found


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return the nodes of a cycle in a graph; empty without one."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :]
        if node in done:
            return []
        for following in sorted(graph.get(node, ())):
            if cycle := visit(following, [*path, node]):
                return cycle
        done.add(node)
        return []

    for node in sorted(graph):
        if cycle := visit(node, []):
            return cycle
    return []


def test_imports_have_no_cycle():
    assert not find_cycle({module: imports_of(file) for module, file in MODULES.items()})


def test_a_cycle_is_found():
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert not find_cycle({"a": {"b", "c"}, "b": {"c"}})


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_production_code_uses_neither_tests_nor_benchmarks(file: Path):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            assert not [n for n in node.names if n.name.split(".")[0] in ("tests", "benchmarks")]
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in ("tests", "benchmarks")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not node.value.startswith(("benchmarks/", "tests/"))


BENCHMARKS = sorted((ROOT / "benchmarks").rglob("*.py"))


@pytest.mark.parametrize("file", BENCHMARKS, ids=lambda file: file.name)
def test_benchmarks_do_not_use_tests(file: Path):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            assert not [name for name in node.names if name.name.split(".")[0] == "tests"]
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] != "tests"
