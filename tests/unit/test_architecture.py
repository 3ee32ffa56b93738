"""The structure of the package: imports without circles, one meaning for each public name, tests of public names only.

Oracle: the syntax trees of all modules and tests.
"""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import neftcli

PACKAGE = Path(neftcli.__file__).parent
TESTS = sorted(Path(__file__).parents[1].rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def imported_modules(name: str) -> set[str]:
    """All modules of neft that a module imports: at its top, in a function, or for type checkers only."""
    modules = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            modules |= submodules & TREES.keys()
            if submodules - TREES.keys():
                modules.add(str(node.module))
    return {module for module in modules if module in TREES and module != name}


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """Return the nodes of a circle, the first one twice; empty if there is none."""
    finished: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in finished:
            return []
        for neighbour in sorted(graph[node]):
            if circle := visit(neighbour, [*path, node]):
                return circle
        finished.add(node)
        return []

    return next((circle for node in sorted(graph) if (circle := visit(node, []))), [])


def test_find_circle() -> None:
    assert find_circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_modules_import_without_circles() -> None:
    graph = {name: imported_modules(name) for name in TREES}
    assert " -> ".join(find_circle(graph)) == ""


def test_public_names_have_one_meaning() -> None:
    """A reader who meets a class or function knows which one it is; commands and `api` have the names of workflows."""
    modules = defaultdict(list)
    for name, tree in TREES.items():
        definitions = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
        for node in definitions if name != "neftcli.api" and name.rpartition(".")[0] != "neftcli.cli" else ():
            if not node.name.startswith("_"):
                modules[node.name].append(name)
    assert {name: places for name, places in modules.items() if len(places) > 1} == {}


def constants(tree: ast.Module) -> set[str]:
    """Public names that a module assigns, without type variables, typer's `app`, and other names of one constant."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            is_type_variable = isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "TypeVar"
            if not is_type_variable and not isinstance(node.value, ast.Name | ast.Attribute):
                names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")} - {"app"}


def test_constants_have_one_meaning() -> None:
    modules = defaultdict(list)
    for name, tree in TREES.items():
        for constant in constants(tree):
            modules[constant].append(name)
    assert {name: places for name, places in modules.items() if len(places) > 1} == {}


def is_private(name: object) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__")


def private_members(tree: ast.Module) -> list[str]:
    """Private names of neft that a test imports, reads from an imported name, or replaces with `setattr`."""
    nodes = list(ast.walk(tree))
    names = {
        alias.asname or alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("neftcli")
        for alias in node.names
    }
    found = [name for name in names if is_private(name)]
    for node in nodes:
        match node:
            case ast.Attribute(value=ast.Name(id=name), attr=member) if name in names and is_private(member):
                found.append(f"{name}.{member}")
            case ast.Call(
                func=ast.Attribute(attr="setattr"), args=[ast.Name(id=name), ast.Constant(value=member), *_]
            ) if name in names and is_private(member):
                found.append(f"{name}.{member}")
    return found


def test_private_members() -> None:
    source = "from neftcli.x import a, _b\na._c\nmonkeypatch.setattr(a, '_d', 1)\nother._e\na.__doc__"
    assert private_members(ast.parse(source)) == ["_b", "a._c", "a._d"]


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_tests_use_public_members(path: Path) -> None:
    """A public member that shows the same survives a rewrite of the inside."""
    assert private_members(ast.parse(path.read_text(encoding="utf-8"))) == []
