"""daemon/extensions: containerd's tables of programs beside the manager."""

from pathlib import Path

import pytest

from lighter.daemon.config.schema import Config, dump, load
from lighter.daemon.config.view import HIDDEN, shown
from lighter.daemon.extensions import ProxyPlugin, StreamProcessor
from lighter.proto.errors import InvalidArgument

TAR = "application/vnd.oci.image.layer.v1.tar"
DEFAULT = f"""
[proxy_plugins]
  [proxy_plugins.stargz]
    type = "snapshot"
    address = "/run/stargz.sock"
    [proxy_plugins.stargz.exports]
      root = "/var/lib/stargz"
  [proxy_plugins.other]
    type = "snapshot"
    address = "unix:///run/other.sock"
[stream_processors]
  [stream_processors."io.containerd.ocicrypt.decoder.v1.tar"]
    accepts = ["{TAR}+encrypted"]
    args = ["--decryption-keys-path", "/etc/containerd/ocicrypt/keys"]
    env = ["KEY=secret"]
    path = "ctd-decoder"
    returns = "{TAR}"
"""
READ = Config(
    proxy_plugins=(
        ProxyPlugin("stargz", "/run/stargz.sock"),
        ProxyPlugin("other", "/run/other.sock"),
    ),
    stream_processors=(
        StreamProcessor(
            "io.containerd.ocicrypt.decoder.v1.tar",
            (TAR + "+encrypted",),
            TAR,
            "ctd-decoder",
            ("--decryption-keys-path", "/etc/containerd/ocicrypt/keys"),
            ("KEY=secret",),
        ),
    ),
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def test_containerds_tables_are_read_and_written(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for version in (2, 3):
        file.write_text(f"version = {version}\n{DEFAULT}")
        assert load(str(file)) == READ
    file.write_text(dump(READ))
    assert load(str(file)) == READ
    assert not caplog.records
    assert "secret" not in shown(READ) and HIDDEN in shown(READ)


def test_empty_tables_are_nothing(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.write_text("[proxy_plugins]\n[stream_processors]\n")
    assert load(str(file)) == Config()
    assert not caplog.records


def test_what_has_no_effect_is_named(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.write_text(
        '[proxy_plugins.c]\ntype = "content"\naddress = "/c"\n'
        '[stream_processors.x]\npath = "cat"\nnice = 5\n'
    )
    assert load(str(file)).proxy_plugins == ()
    assert "proxy_plugins.c is of type 'content'" in caplog.text
    assert "key stream_processors.x.nice is not known" in caplog.text


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("proxy_plugins = 5", "proxy_plugins is 5, expected a table"),
        ("[proxy_plugins]\nx = 5", "proxy_plugins.x is 5, expected a table"),
        ('[proxy_plugins.x]\ntype = "snapshot"', "proxy_plugins.x.address is ''"),
        ('[proxy_plugins.x]\ntype = "snapshot"\naddress = "a"', "absolute path of a socket"),
        ('[proxy_plugins."a/b"]\ntype = "snapshot"\naddress = "/a"', "expected a name of"),
        ("[stream_processors.x]", "stream_processors.x.path is ''"),
        ('[stream_processors.x]\npath = "a/b"', "an absolute path, or a word for PATH"),
        ('[stream_processors.x]\npath = "a"\naccepts = "b"', "accepts is 'str', expected a list"),
        ('[stream_processors.x]\npath = "a"\nenv = ["b"]', "env is 'b', expected NAME=VALUE"),
        ('[stream_processors.x]\npath = "a"\nreturns = 5', "returns is 5, expected text"),
    ],
)
def test_what_cannot_be_meant_is_refused(file: Path, text: str, cause: str) -> None:
    file.write_text(text)
    with pytest.raises(InvalidArgument) as caught:
        load(str(file))
    assert cause in caught.value.message
    assert caught.value.message.startswith(f"read config {file}:")
