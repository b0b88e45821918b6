"""No module of training/ needs itself to be imported first, and none hides such a circle inside a function."""

import ast

import pytest
from places import ROOT

pytestmark = pytest.mark.quick


def imports(package):
    """Module -> the modules of the same package that it imports, at its top or in a function."""
    files = {path.relative_to(ROOT).with_suffix(""): path for path in (ROOT / package).rglob("*.py")}
    modules = {".".join(p.parts).removesuffix(".__init__"): path for p, path in files.items()}
    graph = {}
    for module, path in modules.items():
        graph[module] = found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [name if name in modules else node.module for name in names]
            else:
                continue
            found.update(name for name in names if name in modules)
    return graph


def circle(graph):
    """Modules that import each other in turn; empty if there are none."""
    done, path = set(), []

    def visit(module):
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        path.append(module)
        found = next((c for other in sorted(graph[module]) if (c := visit(other))), [])
        path.pop()
        done.add(module)
        return found

    return next((c for module in sorted(graph) if (c := visit(module))), [])


@pytest.mark.parametrize("package", ["training"])
def test_no_import_circles(package):
    graph = imports(package)
    assert len(graph) > 20
    assert sum(map(len, graph.values())) > 40
    assert circle(graph) == []


def test_circles_are_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
