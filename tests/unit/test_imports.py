"""Rules about the source as a whole: imports point one way, and nothing may run what it read."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lighter.proto.paths

# The folders as they are installed: proto's parent holds its siblings.
PACKAGE = Path(lighter.proto.paths.__file__).parent.parent
MAY_IMPORT = {"proto": set(), "shim": {"proto"}, "daemon": {"proto"}, "ctl": {"proto"}}
# SEC-67: bytes from outside become values through msgpack, JSON and TOML, never through these.
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "yaml", "jsonpickle"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_METHODS = {"recv_pyobj", "send_pyobj", "system", "popen"}
# The spawner must be executed, and asyncio's forks run Python between fork and exec.
FORK_WITHOUT_EXEC = "preexec_fn"


def sources(folder: str) -> Iterator[Path]:
    files = sorted((PACKAGE / folder).rglob("*.py"))
    assert files, f"no source in {PACKAGE / folder}"
    yield from files


def imported_by(tree: ast.AST) -> Iterator[str]:
    """Full names of all modules that a source imports, at its top or inside a function."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(level=0, module=str(module), names=names):
                yield module
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.ImportFrom(level=level) if level > 0:
                yield "a relative import"


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_point_one_way(folder: str) -> None:
    for file in sources(folder):
        names = list(imported_by(ast.parse(file.read_text(), str(file))))
        assert "a relative import" not in names, f"{file}: say lighter.{folder}.…"
        ours = {name.split(".")[1] for name in names if name.startswith("lighter.")}
        assert ours <= MAY_IMPORT[folder] | {folder}, file


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_sec_67_no_source_can_run_what_it_reads(folder: str) -> None:
    for file in sources(folder):
        tree = ast.parse(file.read_text(), str(file))
        roots = {name.split(".")[0] for name in imported_by(tree)}
        assert not roots & FORBIDDEN_MODULES, file
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            where = f"{file}:{node.lineno}"
            match node.func:
                case ast.Name(id=name):
                    assert name not in FORBIDDEN_CALLS, where
                case ast.Attribute(attr=name):
                    assert name not in FORBIDDEN_METHODS, where
            for keyword in node.keywords:
                assert not (keyword.arg == "shell" and _is_true(keyword.value)), where
                assert keyword.arg != FORK_WITHOUT_EXEC, where


def _is_true(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from marshal import loads",
        "def f():\n    import yaml.loader",
    ],
)
def test_the_rule_sees_imports_wherever_they_stand(source: str) -> None:
    roots = {name.split(".")[0] for name in imported_by(ast.parse(source))}
    assert roots & FORBIDDEN_MODULES


def test_every_module_says_what_it_is() -> None:
    for folder in MAY_IMPORT:
        for file in sources(folder):
            tree = ast.parse(file.read_text(), str(file))
            assert not tree.body or ast.get_docstring(tree), f"{file} opens without its reason"


class WithoutAnnotations(ast.NodeTransformer):
    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        self.generic_visit(node)
        node.annotation = ast.Constant(None)
        return node


def unchecked_names(tree: ast.Module) -> set[str]:
    """Names that a module has for the type checker alone, and uses beyond annotations."""
    absent: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            absent |= {name for kind in node.body for name in _bound(kind)}
            node.body = [ast.Pass()]
    present = {name for node in ast.walk(tree) for name in _bound(node)}
    used = WithoutAnnotations().visit(tree)
    return {n.id for n in ast.walk(used) if isinstance(n, ast.Name)} & (absent - present)


def _bound(node: ast.AST) -> list[str]:
    match node:
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return [alias.asname or alias.name for alias in names]
        case ast.Assign(targets=[ast.Name(id=name)]):
            return [name]
    return []


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_what_is_there_for_the_type_checker_stands_in_annotations_alone(folder: str) -> None:
    for file in sources(folder):
        if "TYPE_CHECKING = False" in (text := file.read_text()):
            assert not unchecked_names(ast.parse(text)), file


def test_that_rule_sees_a_use() -> None:
    head = "TYPE_CHECKING = False\nif TYPE_CHECKING:\n    from typing import Any\n"
    assert not unchecked_names(ast.parse(head + "def f(x: Any) -> Any:\n    y: Any = x"))
    assert unchecked_names(ast.parse(head + "def f(x):\n    return isinstance(x, Any)")) == {"Any"}
