"""Rules that hold for all of the source: SEC-67 (nothing that runs what it reads), and its like."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

import lighter.proto

SOURCE = Path(next(iter(lighter.proto.__path__))).resolve().parent
FOLDERS = ("proto", "shim", "daemon", "ctl")
# Modules whose reading runs code or builds any object, and calls that do.
MODULES = {"pickle", "cPickle", "marshal", "shelve", "yaml", "dill", "jsonpickle", "copyreg"}
CALLS = {
    *("recv_pyobj", "send_pyobj", "literal_eval", "extractall", "unpack_archive"),
    *("system", "popen", "mktemp"),
}
BUILT_IN = {"eval", "exec", "compile", "__import__"}  # as methods these words mean other things


def trees() -> Iterator[tuple[str, ast.AST]]:
    for folder in FOLDERS:
        for path in sorted((SOURCE / folder).rglob("*.py")):
            yield str(path.relative_to(SOURCE)), ast.parse(path.read_text())


def called(node: ast.Call) -> str:
    """The name of what is called, "" for anything that has none."""
    if isinstance(node.func, ast.Attribute):
        return "" if node.func.attr in BUILT_IN else node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def test_there_is_source_to_look_at() -> None:
    assert len(list(trees())) > 100


def test_sec67_nothing_is_loaded_that_runs_what_it_reads() -> None:
    found = []
    for name, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found += [(name, a.name) for a in node.names if a.name.split(".")[0] in MODULES]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
                found.append((name, node.module or ""))
            elif isinstance(node, ast.Call) and called(node) in CALLS | BUILT_IN:
                found.append((name, called(node)))
    assert found == []


def test_sec67_every_unpacking_of_foreign_messages_refuses_ext_types() -> None:
    packing = ast.parse((SOURCE / "proto" / "packing.py").read_text())
    calls = [n for n in ast.walk(packing) if isinstance(n, ast.Call) and called(n) == "unpackb"]
    assert len(calls) == 1
    options = {keyword.arg for keyword in calls[0].keywords}
    assert {"ext_hook", "max_ext_len", "max_str_len", "max_array_len", "max_map_len"} <= options
    assert "object_hook" not in options and "list_hook" not in options


def test_no_shell_is_ever_asked() -> None:
    for name, tree in trees():
        for node in ast.walk(tree):
            # An image's SHELL is a field of what is read of it.
            if isinstance(node, ast.Call) and called(node) != "ImageConfig":
                shell = [k for k in node.keywords if k.arg == "shell"]
                assert not shell, f"{name}:{node.lineno}"


def test_sec64_no_address_is_abstract() -> None:
    for name, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                # Docker's word for a syslog receiver, which no socket of ZeroMQ is given.
                said = node.value.replace("tcp://ADDRESS[:PORT]", "")
                assert "ipc://@" not in said and "tcp://" not in said, name


def test_no_socket_of_zeromq_is_read_by_its_own_asyncio_classes() -> None:
    """They make a detour for each message, and take the edge of a descriptor that both use."""
    found = []
    for name, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found += [(name, a.name) for a in node.names if a.name.startswith("zmq.")]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "zmq":
                found += [(name, f"{node.module}.{a.name}") for a in node.names]
            elif isinstance(node, ast.Attribute) and ast.unparse(node) == "zmq.asyncio":
                found.append((name, "zmq.asyncio"))
    assert [where for where in found if "asyncio" in where[1]] == []


def test_nothing_that_forks_loads_zeromq() -> None:
    """The threads of a context stay behind in the parent."""
    found = [
        name
        for name, tree in trees()
        if name.split("/")[0] in ("shim", "proto", "ctl")
        for node in ast.walk(tree)
        if (isinstance(node, ast.Import) and any(a.name == "zmq" for a in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "zmq")
    ]
    assert found == []


def test_sec68_libzmq_has_the_fixes() -> None:
    version = tuple(int(part) for part in zmq.zmq_version().split("."))
    assert version >= (4, 3, 5)


@pytest.mark.parametrize("text", ["archive.extractall('x')", "eval('x')", "os.system('x')"])
def test_the_rule_would_find_what_it_looks_for(text: str) -> None:
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call)
    assert called(call) in CALLS | BUILT_IN
