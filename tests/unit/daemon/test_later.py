"""Modules whose names are bound, and whose files are read when something of them is asked for."""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ExtensionFileLoader
from importlib.util import find_spec
from pathlib import Path

import pytest

import lighter.daemon.entry.options
from lighter.daemon.entry import later

SITE = Path(lighter.daemon.entry.options.__file__).parents[3]
BEGIN = f"""
import sys
sys.path.insert(0, {str(SITE)!r})
from lighter.daemon.entry import later
later.put_off()
"""
NAMES = ("lighter_test_good", "lighter_test_bad")


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One that can be loaded, and one that can be from the second time on."""
    (tmp_path / f"{NAMES[0]}.py").write_text("VALUE = 5\n")
    (tmp_path / f"{NAMES[1]}.py").write_text(
        "import sys\nsys.lighter_test = getattr(sys, 'lighter_test', 0) + 1\n"
        "1 / (sys.lighter_test - 1)\nVALUE = 6\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(later, "PUT_OFF", frozenset(NAMES))
    later.put_off()
    yield
    later.put_off_until_now()
    for name in NAMES:
        sys.modules.pop(name, None)
    vars(sys).pop("lighter_test", None)


def python(body: str) -> list[str]:
    """What a program prints that is run as the package's launcher runs one."""
    argv = [sys.executable, "-IS", "-c", BEGIN + body]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_a_module_of_machine_code_is_loaded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of the standard library's are such is the distribution's choice."""
    name = "_testmultiphase" if find_spec("_testmultiphase") else "_ssl"
    assert isinstance(getattr(find_spec(name), "loader", None), ExtensionFileLoader)
    monkeypatch.setattr(later, "PUT_OFF", frozenset({name}))
    monkeypatch.delitem(sys.modules, name, raising=False)
    later.put_off()
    try:
        module = importlib.import_module(name)
        assert len(vars(module)) > 10 and not isinstance(module, later._Later)
    finally:
        later.put_off_until_now()


@pytest.mark.usefixtures("modules")
def test_a_module_is_loaded_when_something_of_it_is_asked_for() -> None:
    import lighter_test_good  # type: ignore[import-not-found]

    assert "VALUE" not in vars(lighter_test_good)
    assert lighter_test_good.__name__ == NAMES[0]
    import lighter_test_good as again

    assert again is lighter_test_good and "VALUE" not in vars(again)
    assert lighter_test_good.VALUE == 5
    with pytest.raises(AttributeError, match="OTHER"):
        _ = lighter_test_good.OTHER
    assert later.put_off_until_now() == []


@pytest.mark.usefixtures("modules")
def test_one_that_fails_says_so_each_time_until_it_can_be_loaded() -> None:
    import lighter_test_bad  # type: ignore[import-not-found]

    with pytest.raises(ZeroDivisionError):
        _ = lighter_test_bad.VALUE
    assert later.put_off_until_now() == [lighter_test_bad]
    later.load(lighter_test_bad)
    assert lighter_test_bad.VALUE == 6


@pytest.mark.usefixtures("modules")
def test_what_was_not_asked_for_is_loaded_in_the_end_and_nothing_put_off_any_more() -> None:
    import lighter_test_good

    finders = len(sys.meta_path)
    assert later.put_off_until_now() == [lighter_test_good]
    assert len(sys.meta_path) == finders - 1
    later.load(lighter_test_good)
    assert vars(lighter_test_good)["VALUE"] == 5
    later.load(lighter_test_good)
    del sys.modules[NAMES[0]]
    import lighter_test_good as eager

    assert vars(eager)["VALUE"] == 5


def test_asyncio_works_without_what_is_put_off_and_with_it() -> None:
    said = python("""
import asyncio, zmq
print("_ssl" in sys.modules, "_ast" in sys.modules)
for module in later.put_off_until_now():
    later.load(module)
print(later.put_off_until_now() == [], "_ssl" in sys.modules, "_ast" in sys.modules)
from asyncio import base_events, sslproto
import ssl
print(base_events.ssl is ssl, sslproto.ssl is ssl, asyncio.sslproto is sslproto)
print(issubclass(ssl.SSLWantReadError, sslproto.SSLAgainErrors), ssl.create_default_context() != 0)
""")
    assert said == ["False", "False", *["True"] * 8]
