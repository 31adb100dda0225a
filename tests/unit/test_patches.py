"""What a test replaces in a module must be there: mypy does not see the names in strings."""

import ast
import importlib
from pathlib import Path

_TESTS = Path(__file__).parents[1]


def _imported(tree: ast.Module) -> dict[str, str]:
    """Names of a module's imports, and the dotted paths that they stand for."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            names |= {a.asname or a.name: a.name for a in node.names}
    return names


def _patched(tree: ast.Module) -> list[str]:
    """Dotted paths that a module's tests replace, of those that its imports name."""
    names, found = _imported(tree), []
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(attr="setattr" | "delattr"),
                args=[ast.Constant(value=str(path)), *_],
            ):
                found.append(path)
            case ast.Call(
                func=ast.Attribute(attr="setattr" | "delattr"),
                args=[owner, ast.Constant(value=str(name)), *_],
            ):
                first, *rest = ast.unparse(owner).split(".")
                if first in names:
                    found.append(".".join((names[first], *rest, name)))
    return found


def _is_there(path: str) -> bool:
    parts = path.split(".")
    for count in range(len(parts) - 1, 0, -1):
        try:
            thing: object = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for name in parts[count:]:
            if not hasattr(thing, name):
                return False
            thing = getattr(thing, name)
        return True
    return False


def test_what_tests_replace_is_there() -> None:
    patched = {
        (str(file.relative_to(_TESTS)), path)
        for file in _TESTS.rglob("*.py")
        for path in _patched(ast.parse(file.read_text()))
    }
    assert len(patched) > 20  # else the search has gone blind
    assert not [(file, path) for file, path in sorted(patched) if not _is_there(path)]
