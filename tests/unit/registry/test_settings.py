"""Registries in the configuration: containerd's tables at all of their places, and ours."""

import base64
import tomllib
from pathlib import Path

import pytest

from lighter.daemon.config.schema import dump, load
from lighter.daemon.config.schema import parse as parse_config
from lighter.daemon.registry.access import Credential
from lighter.daemon.registry.endpoints import Tls
from lighter.daemon.registry.proxies import Proxies
from lighter.daemon.registry.settings import DEFAULT_CONFIG_PATH, RegistrySettings, parse
from lighter.proto.errors import InvalidArgument

EVERYTHING = """
[plugins."io.lighter.v1".registry]
config_path = "/a:/b"
allowed_targets = ["minio.example:9000", "10.0.0.0/8"]
allowed_realms = ["auth.example"]
[plugins."io.lighter.v1".registry.headers]
X-One = ["1"]
[plugins."io.lighter.v1".registry.proxy]
https = "http://u:p@proxy.example:3128"
no_proxy = ".example"
[plugins."io.lighter.v1".registry.mirrors."docker.io"]
endpoint = ["https://mirror.example", "http://127.0.0.1:5000"]
[plugins."io.lighter.v1".registry.configs."mirror.example".tls]
ca_file = "/ca.pem"
cert_file = "/c.pem"
key_file = "/k.pem"
[plugins."io.lighter.v1".registry.configs."mirror.example".auth]
username = "u"
password = "secret-of-config"
"""


def settings(text: str) -> RegistrySettings:
    return parse(tomllib.loads(text), "config.toml")


@pytest.mark.parametrize(
    "place",
    [
        "plugins.cri.registry",
        'plugins."io.containerd.grpc.v1.cri".registry',
        'plugins."io.containerd.cri.v1.images".registry',
        'plugins."io.lighter.v1".registry',
    ],
)
def test_the_tables_stand_at_each_place(place: str) -> None:
    found = settings(
        f'[{place}.mirrors."docker.io"]\nendpoint = ["https://m.example"]\n'
        f'[{place}.configs."m.example".tls]\ninsecure_skip_verify = true\n'
        f'[{place}.configs."m.example".auth]\nusername = "u"\npassword = "p"\n'
    )
    assert found.mirrors == {"docker.io": ("https://m.example",)}
    assert found.configs["m.example"].tls == Tls(skip_verify=True)
    assert found.configs["m.example"].credential == Credential("u", "p")


def test_our_own_place_comes_first_key_by_key() -> None:
    found = settings(
        '[plugins."io.lighter.v1".registry]\nconfig_path = "/ours"\n'
        '[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "/theirs"\n'
        '[plugins."io.containerd.grpc.v1.cri".registry.mirrors."*"]\nendpoint = ["m.example"]\n'
    )
    assert found.config_path == ("/ours",)
    assert found.mirrors == {"*": ("m.example",)}


def test_config_path_has_a_default_and_stands_with_the_transfer_service_too() -> None:
    assert ":".join(settings("").config_path) == DEFAULT_CONFIG_PATH
    assert settings('[plugins."io.containerd.cri.v1.images".registry]\nconfig_path = ""\n') == (
        settings("")
    )
    transfer = '[plugins."io.containerd.transfer.v1.local"]\nconfig_path = "/t"\n'
    assert settings(transfer).config_path == ("/t",)


def test_auths_are_older_than_configs() -> None:
    pair = base64.b64encode(b"user:pass:word").decode()
    found = settings(
        f'[plugins.cri.registry.auths."https://h.example:5000/v1/"]\nauth = "{pair}"\n'
        '[plugins.cri.registry.auths."token.example"]\nidentitytoken = "t"\n'
    )
    assert found.configs["h.example:5000"].credential == Credential("user", "pass:word")
    assert found.configs["token.example"].credential == Credential(identity_token="t")


def test_the_configuration_is_written_as_it_is_read(tmp_path: Path) -> None:
    config = parse_config(tomllib.loads(EVERYTHING), "config.toml")
    assert config.registry.proxies == Proxies("", "http://u:p@proxy.example:3128", ".example")
    file = tmp_path / "dumped.toml"
    file.write_text(dump(config))
    assert load(str(file)) == config


def test_no_secret_is_in_a_repr() -> None:
    shown = repr(settings(EVERYTHING))
    assert "secret-of-config" not in shown
    assert "u:p@" not in shown


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('config_path = "relative"', "config_path is 'relative'"),
        ("config_path = 5", "config_path is 'int'"),
        ("mirrors = 5", "mirrors is 5"),
        ('mirrors."a" = 5', 'mirrors."a" is 5'),
        ('mirrors."a".endpoint = 5', "endpoint is 'int'"),
        ('mirrors."a".endpoint = ["ftp://x"]', "neither http nor https"),
        ('mirrors."a".endpoint = ["http://u:p@x"]', "holds a user name"),
        ('configs."a".tls.insecure_skip_verify = "yes"', "insecure_skip_verify is 'yes'"),
        ('configs."a".auth.auth = "%%%"', "in base64"),
        ("allowed_realms = [5]", "allowed_realms is 'list'"),
        ('proxy = "x"', "proxy is 'x'"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(text: str, words: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        settings(f'[plugins."io.lighter.v1".registry]\n{text}\n')
    assert words in caught.value.message
    assert "config.toml" in caught.value.message


def test_an_unknown_key_warns(caplog: pytest.LogCaptureFixture) -> None:
    parse_config(tomllib.loads("[plugins.cri.registry]\nconfg_path = 1\n"), "config.toml")
    assert any("plugins.cri.registry.confg_path" in text for text in caplog.messages)
