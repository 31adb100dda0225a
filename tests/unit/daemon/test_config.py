"""daemon/config/schema: what is read, what is refused and in which words, and what dump writes."""

import os
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lighter.daemon.config import schema
from lighter.daemon.config.files import MAX_CONFIG_BYTES
from lighter.daemon.config.lines import beginnings
from lighter.daemon.config.schema import Config, dump, load, parse
from lighter.daemon.config.text import text_of
from lighter.daemon.content.scheduler import Schedule
from lighter.daemon.registry.settings import RegistrySettings
from lighter.proto.errors import InvalidArgument


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def refusal(path: Path) -> str:
    with pytest.raises(InvalidArgument) as caught:
        load(str(path))
    assert "\n" not in caught.value.message
    assert caught.value.message.startswith(f"read config {path}:")
    return caught.value.message


def test_an_empty_file_gives_the_defaults(file: Path) -> None:
    file.write_text("")
    assert load(str(file)) == Config()


def test_our_keys_stand_in_one_plugin_table(file: Path) -> None:
    file.write_text(
        'version = 3\nroot = "/r"\n[debug]\nlevel = "warn"\n'
        '[plugins."io.lighter.v1"]\ngroup = "ops"\n'
        '[plugins."io.lighter.v1".runtimes.runc]\npath = "/opt/runc"\n'
        '[plugins."io.lighter.v1".log]\nmax_size = 0\nmax_file = 0\n'
    )
    assert load(str(file)) == Config(
        root="/r", level="warn", group="ops", runc_path="/opt/runc", log_max_size=0, log_max_file=0
    )


def test_the_collectors_keys_are_containerds(file: Path) -> None:
    file.write_text(
        '[plugins."io.containerd.gc.v1.scheduler"]\npause_threshold = 0\ndeletion_threshold = 5\n'
        'mutation_threshold = 7\nschedule_delay = "1m2.5s"\nstartup_delay = "250ms"\n'
        '[plugins."io.containerd.metadata.v1.bolt"]\ncontent_sharing_policy = "shared"\n'
    )
    read = load(str(file))
    assert read.gc == Schedule(0.0, 5, 7, 62.5, 0.25)
    assert read.content_sharing == "shared"
    assert Config().gc == Schedule()


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("pause_threshold = 0.6", "pause_threshold is 0.6, expected 0 to 0.5"),
        ("pause_threshold = nan", "pause_threshold is nan"),
        ('pause_threshold = "1"', "expected a number"),
        ("pause_threshold = true", "expected a number"),
        ('schedule_delay = "soon"', "schedule_delay is 'soon', expected a duration such as 100ms"),
        ("schedule_delay = 5", "expected text"),
        ('startup_delay = ""', "expected a duration"),
        ("deletion_threshold = -1", "deletion_threshold is -1"),
        ("mutation_threshold = -1", "mutation_threshold is -1"),
    ],
)
def test_a_wrong_value_of_the_collector_is_refused(file: Path, line: str, cause: str) -> None:
    file.write_text(f'[plugins."io.containerd.gc.v1.scheduler"]\n{line}\n')
    assert cause in refusal(file)


def test_a_wrong_sharing_policy_is_refused(file: Path) -> None:
    file.write_text('[plugins."io.containerd.metadata.v1.bolt"]\ncontent_sharing_policy = "some"\n')
    assert "content_sharing_policy is 'some', expected isolated or shared" in refusal(file)


def test_a_link_to_the_file_is_followed(file: Path, tmp_path: Path) -> None:
    file.write_text('root = "/r"\n')
    link = tmp_path / "link.toml"
    link.symlink_to(file)
    assert load(str(link)).root == "/r"


@pytest.mark.parametrize("version", [1, 2, 3])
def test_containerds_own_files_are_read(
    file: Path, version: int, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text(
        f'version = {version}\nroot = "/r"\noom_score = 0\n[debug]\nlevel = ""\n'
        '[grpc]\naddress = "/run/c.sock"\n[plugins.cri.registry.mirrors."a.b"]\nendpoint = ["x"]\n'
    )
    registry = RegistrySettings(mirrors={"a.b": ("x",)})
    assert load(str(file)) == Config(root="/r", address="/run/c.sock", registry=registry)
    warned = [record.getMessage() for record in caplog.records]
    assert any("key oom_score " in text for text in warned)
    assert not any("mirrors" in text for text in warned)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"version = 99", "version is 99"),
        (b'version = "3"', "version is '3'"),
        (b"version = true", "version is True"),
        (b"version = 3.0", "version is 3.0"),
        (b"root = 5", "root is 5, expected text"),
        (b'root = "r"', "root is not an absolute path"),
        (b"[debug]\nlevel = 1", "debug.level is 1"),
        (b'[debug]\nlevel = "loud"', "debug.level is 'loud'"),
        (b'debug = "x"', "debug is 'x', expected a table"),
        (b'[plugins."io.lighter.v1".log]\nmax_size = "1"', "log.max_size is '1', expected a whole"),
        (b'[plugins."io.lighter.v1".log]\nmax_size = true', "log.max_size is True"),
        (b'[plugins."io.lighter.v1".log]\nmax_file = -1', "log.max_file is -1, expected 0 or more"),
        (b"root = [" + b"[" * 100_000, "too deep"),
    ],
)
def test_a_wrong_value_is_named_by_its_key(file: Path, text: bytes, words: str) -> None:
    file.write_bytes(text)
    said = refusal(file)
    assert words in said


OURS = b'[plugins."io.lighter.v1"]\n'


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"root = 5", 1),
        (b"# root = 1\n\nversion = 3\nroot = 5 # root\n[debug]\nlevel = 1", 4),
        (b'root = "/r"\n[debug]\n  level = 7', 3),
        (b"debug.level = 7", 1),
        (b"version = 3\ndebug = { level = 7 }", 2),
        (b'version = 3\ndebug = "x"', 2),
        (b"[debug]\naddress = 1\n[grpc]\n\naddress = 1", 5),
        (OURS + b"group = 5", 2),
        (b"[plugins.'io.lighter.v1'.log]\nmax_file = 1\nmax_size = true", 3),
        (b'plugins."io.lighter.v1".log.max_size = true', 1),
        (b'[plugins."io.lighter.v1".log]\nmax_size = 1\nmax_file = -1', 3),
        (b'[plugins."io.lighter.v1".images]\nlayers_at_once = 0', 2),
        (b'[plugins."io.lighter.v1".images]\n\nmax_layer_entries = -1', 3),
        (b'[plugins."io.lighter.v1".userns]\nids = "x"', 2),
        (b'[plugins."io.lighter.v1".runtimes.runc]\ntimeout_s = 0', 2),
        (b'[plugins."io.lighter.v1".network]\nsubnet = "x"', 2),
        (b"[grpc]\nuid = -1", 2),
        (b'[grpc]\ntcp_address = "nowhere"', 2),
        (b'[plugins."io.containerd.gc.v1.scheduler"]\nschedule_delay = 5', 2),
        # What only looks like the key.
        (b'x = """\nroot = 5\n"""\nroot = 5', 4),
        (b'x = [\n"""\nroot = 5""",\n]\nroot = 5', 5),
        (b'x = """\n' + b"k" * 5000 + b'\n"""\nroot = 5', 4),
        # Lines end where the parser says, and names hold what ends them elsewhere.
        ("# \u2028 \x85\r\nroot = 5\r\n".encode(), 2),
        (b'[plugins."io.lighter.v1".log]\nmax_size = 1\n["a]b"]\nx = 1\n[debug]\nlevel = 7', 6),
        (b'"a\\"%s" = 1\nroot = 5' % (b"b" * 40), 2),
    ],
)
def test_f78_a_wrong_value_is_named_by_its_line_too(file: Path, text: bytes, line: int) -> None:
    file.write_bytes(text)
    assert refusal(file).startswith(f"read config {file}:{line}: ")


HARD = r"""
a = [ 1, [ 2, "]" ], # ]
  '[', {b = "}"},
] # [
"c\"[" = "\\" # Q
d = Q"" \Q [
Q""
e = Q
"" ""\\Q
f = ~\~
g = ~''
[ ~''
["h]".'"']
i = {j = [
]}
[[k]]
l = ""
m = ''
n = QQ
""".replace("~", "'" * 3).replace("Q", '"' * 3)


def test_lines_at_which_a_statement_may_begin_are_those_before_which_a_document_may_end() -> None:
    lines = HARD.split("\n")
    assert tomllib.loads(HARD)

    def is_whole(text: str) -> bool:
        try:
            tomllib.loads(text)
        except tomllib.TOMLDecodeError:
            return False
        return True

    expected = [
        number for number in range(1, len(lines) + 1) if is_whole("\n".join(lines[: number - 1]))
    ]
    assert list(beginnings(HARD)) == expected
    assert len(expected) < len(lines) - 5


def test_f78_a_mistake_in_a_long_file_is_found_in_no_time(file: Path) -> None:
    plugins = "".join(f'[proxy_plugins.p{n}]\ntype = "snapshot"\n' for n in range(3000))
    file.write_text(f"{plugins}[debug]\nlevel = 7\n")
    before = time.thread_time()
    assert refusal(file).startswith(f"read config {file}:6002: debug.level is 7")
    assert time.thread_time() - before < 5


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"a = 1\nb = \nc = 3\n", 2),
        (b"a = 1\na = 2\n", 2),
        (b"[a]\n[b]\n[a]\n", 3),
        (b"a = 1\n\n'\xff' = 1\n", 3),
        (b'a = 1\nb = "unended\n', 2),
        (b"a = 1\nb = ", 2),
        (b"a = 1\nb = [1,\n2", 3),
    ],
)
def test_bad_toml_is_named_by_its_line(file: Path, text: bytes, line: int) -> None:
    file.write_bytes(text)
    assert refusal(file).startswith(f"read config {file}:{line}: ")


def test_a_missing_file_is_an_error_only_when_it_was_named(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "No such file" in refusal(file)
    monkeypatch.setattr(schema, "DEFAULT_PATH", str(file))
    assert load(None) == Config()


def test_a_default_file_that_cannot_be_read_is_never_taken_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "DEFAULT_PATH", str(tmp_path))
    with pytest.raises(InvalidArgument, match="it is no regular file"):
        load(None)


def test_what_is_no_file_is_refused_at_once(file: Path) -> None:
    os.mkfifo(file)
    assert "no regular file" in refusal(file)
    assert "no regular file" in refusal(Path("/dev/zero"))


def test_a_huge_file_is_not_read(file: Path) -> None:
    with file.open("wb") as out:
        out.truncate(100 << 20)
    assert f"more than {MAX_CONFIG_BYTES} bytes" in refusal(file)


def test_a_dump_reads_back_to_the_same() -> None:
    made = Config(root='/a"b\\c', group="ops", log_max_size=7)
    assert parse(tomllib.loads(dump(made)), "dump") == made


@given(st.text(), st.text())
@example("\x7f\x85\0\\x41\\\\x", "\0ker.io")
def test_any_text_and_key_reads_back_to_the_same(text: str, key: str) -> None:
    document = {"a": text, "b": {"c": [text, text], key: text, f".{key}": {key: {"d": text}}}}
    assert tomllib.loads(text_of(document)) == document


_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["version", "root", "debug", "level", "plugins", "io.lighter.v1", "log"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["version", "root", "debug", "grpc", "plugins"]), _VALUES))
def test_any_table_gives_settings_or_one_error(table: dict[str, Any]) -> None:
    try:
        made = parse(table, "fuzz")
    except InvalidArgument:
        return
    assert made.root.startswith("/") and made.level in schema.LEVELS


def test_the_limits_of_layers(file: Path) -> None:
    file.write_text(
        "[plugins.'io.lighter.v1'.images]\n"
        "max_layer_bytes = 5\nmax_layer_entries = 6\nlayers_at_once = 7\n"
    )
    config = load(str(file))
    assert config.layer_limits == {"max_bytes": 5, "max_entries": 6}
    assert config.layers_at_once == 7
    for line in ("max_layer_bytes = -1", "layers_at_once = 0", "layers_at_once = 65"):
        file.write_text(f"[plugins.'io.lighter.v1'.images]\n{line}\n")
        with pytest.raises(InvalidArgument, match=line.partition(" ")[0]):
            load(str(file))
