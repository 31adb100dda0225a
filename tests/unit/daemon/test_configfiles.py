"""daemon/config/files: what is imported, what of it counts, and what is refused where."""

import os
from pathlib import Path

import pytest

from lighter.daemon.config.files import MAX_FILES
from lighter.daemon.config.schema import Config, dump, load
from lighter.proto.errors import InvalidArgument

OURS = '[plugins."io.lighter.v1"]\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def put(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def refusal(file: Path) -> str:
    with pytest.raises(InvalidArgument) as caught:
        load(str(file))
    assert "\n" not in caught.value.message
    return caught.value.message


def test_f78_what_the_last_file_says_counts_and_tables_are_merged(file: Path) -> None:
    put(file, f'imports = ["a.toml", "{file.parent}/sub/b.toml"]\nroot = "/r"\n{OURS}group = "x"\n')
    put(file.parent / "a.toml", f'root = "/a"\nstate = "/a"\n{OURS}snapshotter = "native"\n')
    put(
        file.parent / "sub/b.toml", f'state = "/b"\n{OURS}selinux = true\n[debug]\nlevel = "warn"\n'
    )
    wanted = Config(
        root="/a", state="/b", level="warn", group="x", snapshotter="native", selinux=True
    )
    assert load(str(file)) == wanted
    # What is merged is dumped, and reads back without the files.
    assert load(str(put(file.parent / "elsewhere/dump.toml", dump(wanted)))) == wanted


def test_f78_a_pattern_takes_what_is_there_by_name(file: Path) -> None:
    put(file, 'imports = ["conf.d/*.toml", "none/*.toml"]\n')
    for name in ("20-b", "10-a", "30-c"):
        put(file.parent / f"conf.d/{name}.toml", f'root = "/{name}"\n')
    put(file.parent / "conf.d/40-d.toml.bak", 'root = "/no"\n')
    put(file.parent / "conf.d/.hidden.toml", 'root = "/no"\n')
    assert load(str(file)).root == "/30-c"


def test_imports_of_imports_come_last_and_are_relative_to_theirs(file: Path) -> None:
    put(file, 'imports = ["sub/a.toml", "b.toml"]\n')
    put(file.parent / "sub/a.toml", 'imports = ["c.toml"]\nroot = "/a"\n')
    put(file.parent / "sub/c.toml", 'root = "/c"\n')
    put(file.parent / "b.toml", 'root = "/b"\nstate = "/b"\n')
    assert load(str(file)) == Config(root="/c", state="/b")


def test_a_file_counts_once_by_whatever_way_it_comes(file: Path) -> None:
    put(file, 'imports = ["a.toml", "b.toml", "*.toml"]\nroot = "/r"\n')
    put(file.parent / "a.toml", 'imports = ["link.toml"]\nroot = "/a"\n')
    put(file.parent / "b.toml", 'imports = ["a.toml"]\nroot = "/b"\n')
    (file.parent / "link.toml").symlink_to("b.toml")
    assert load(str(file)).root == "/b"


@pytest.mark.parametrize(
    ("imported", "where", "words"),
    [
        (None, "config.toml:3", "imports '/"),
        ("", None, ""),
        ("x = \n", "site.toml:1", "Invalid value"),
        ("root = 5\n", "site.toml:1", "root is 5, expected text"),
        ("\n[debug]\nlevel = 7\n", "site.toml:3", "debug.level is 7"),
        ("version = 3\n", "site.toml:1", "version is 3, and "),
        ("version = 0\n", "site.toml:1", "version is 0, expected 1 to 2"),
        ("version = '2'\n", "site.toml:1", "version is '2', expected 1 to 2"),
        ("version = 1\n", None, ""),
        ('imports = ["config.toml"]\n', "site.toml:1", "it imports this file itself"),
        ('imports = ["site.toml"]\n', "site.toml:1", "it imports this file itself"),
        ('imports = ["b.toml"]\n', "b.toml:2", "it imports this file itself"),
        ("imports = 5\n", "site.toml:1", "imports is 5, expected a list of paths"),
        ("imports = [5]\n", "site.toml:1", "imports is [5], expected a list of paths"),
        ('imports = [""]\n', "site.toml:1", "expected a list of paths"),
        ('imports = ["a\\u0000b"]\n', "site.toml:1", "it is no path"),
        ('imports = ["."]\n', "site.toml:1", "it is no regular file"),
        ("a = " + "9" * 5000, "site.toml", "a number is over 64 bits"),
        ("a = [[{b = 0x" + "f" * 5000 + "}]]", "site.toml", "a number is over 64 bits"),
        (f"a = {1 << 63}\n", "site.toml", "a number is over 64 bits"),
        (f"a = {(1 << 63) - 1}\n", None, ""),
        ("a = [" + "[" * 100_000, "site.toml", "it nests too deep"),
        (".".join(["a"] * 5000) + " = 1\n", "site.toml", "it nests too deep"),
        # Where a key stands that another file is right about.
        ("[debug]\n[grpc]\n", "config.toml:5", "debug.level is 'loud'"),
    ],
)
def test_f78_a_mistake_is_named_by_the_file_that_it_is_in(
    file: Path, imported: str | None, where: str | None, words: str
) -> None:
    level = "loud" if words.startswith("debug.level is 'l") else "info"
    put(file, f'version = 2\n\nimports = ["site.toml"]\n[debug]\nlevel = "{level}"\n')
    put(file.parent / "b.toml", '\nimports = ["site.toml"]\n')
    if imported is not None:
        put(file.parent / "site.toml", imported)
    if where is None:
        load(str(file))
        return
    said = refusal(file)
    assert said.startswith(f"read config {file.parent}/{where}: ") and words in said


def test_the_version_is_the_first_files(file: Path) -> None:
    put(file, 'imports = ["a.toml"]\nversion = 99\n')
    put(file.parent / "a.toml", "version = 3\n")
    assert refusal(file).startswith(f"read config {file}:2: version is 99")


def test_unknown_keys_are_named_by_their_file(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(file, 'imports = ["a.toml"]\nroot = "/r"\n')
    put(file.parent / "a.toml", "oom_score = 1\n")
    load(str(file))
    assert [record.getMessage() for record in caplog.records] == [
        f"config {file.parent}/a.toml: key oom_score is not known and has no effect"
    ]


def test_what_is_no_file_holds_nothing_up(file: Path) -> None:
    put(file, 'imports = ["fifo"]\n')
    os.mkfifo(file.parent / "fifo")
    assert "it is no regular file" in refusal(file)


def test_there_is_an_end_to_them(file: Path) -> None:
    put(file, 'imports = ["d/*"]\n')
    for number in range(MAX_FILES):
        put(file.parent / f"d/{number}", "")
    assert f"imports more than {MAX_FILES} files" in refusal(file)
