"""Which hosts serve a registry: hosts.toml directories, the older tables, and the default."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighter.daemon.registry import hosts
from lighter.daemon.registry.access import Access, Credential
from lighter.daemon.registry.endpoints import CAPABILITIES, PULL, RESOLVE, Endpoint, Tls
from lighter.daemon.registry.settings import HostConfig, RegistrySettings
from lighter.proto.errors import InvalidArgument

ME = Access(Credential("me", "my-password"))


def found(domain: str, access: Access = Access(), **settings: Any) -> list[Endpoint]:  # noqa: B008
    settings.setdefault("config_path", ())
    return hosts.endpoints(domain, access, RegistrySettings(**settings, file="c.toml"))[0]


def urls(endpoints: list[Endpoint]) -> list[str]:
    return [item.base.url for item in endpoints]


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    return tmp_path / "certs.d"


def write(certs: Path, name: str, text: str) -> Path:
    directory = certs / name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "hosts.toml").write_text(text)
    return directory


@pytest.mark.parametrize(
    ("domain", "access", "url"),
    [
        ("docker.io", Access(), "https://registry-1.docker.io/v2"),
        ("reg.example:5000", Access(), "https://reg.example:5000/v2"),
        ("reg.example", Access(plain_http=True), "http://reg.example/v2"),
        ("localhost:5000", Access(), "http://localhost:5000/v2"),
        ("localhost", Access(), "http://localhost/v2"),
        ("127.0.0.1:5000", Access(), "http://127.0.0.1:5000/v2"),
        ("127.9.9.9", Access(), "http://127.9.9.9/v2"),
        ("[::1]:5000", Access(), "http://[::1]:5000/v2"),
        ("127.0.0.1:5000", Access(skip_verify=True), "https://127.0.0.1:5000/v2"),
        ("127.0.0.1:5000", Access(ca="/ca"), "https://127.0.0.1:5000/v2"),
        ("10.0.0.1:5000", Access(), "https://10.0.0.1:5000/v2"),
        ("localhost.example", Access(), "https://localhost.example/v2"),
        ("notlocalhost:5000", Access(), "https://notlocalhost:5000/v2"),
    ],
)
def test_sec_29_plain_http_is_said_or_literally_this_machine(
    domain: str, access: Access, url: str
) -> None:
    assert urls(found(domain, access)) == [url]


def test_mirrors_stand_in_order_before_the_registry(certs: Path) -> None:
    write(
        certs,
        "docker.io",
        'server = "https://registry-1.docker.io"\n'
        '[host."https://z.example"]\ncapabilities = ["pull", "resolve"]\n'
        '[host."http://a.example:5000/v2"]\ncapabilities = ["pull"]\n'
        '[host."https://m.example/v2/proxy"]\noverride_path = true\n',
    )
    z, a, m, own = found("docker.io", config_path=(str(certs),))
    assert urls([z, a, m, own]) == [
        "https://z.example/v2",
        "http://a.example:5000/v2",
        "https://m.example/v2/proxy",
        "https://registry-1.docker.io/v2",
    ]
    assert [z.capabilities, a.capabilities] == [{PULL, RESOLVE}, {PULL}]
    assert m.capabilities == own.capabilities == CAPABILITIES
    assert [item.namespace for item in (z, a, m, own)] == ["docker.io"] * 3 + [""]
    assert z.link("x/manifests/1").url == "https://z.example/v2/x/manifests/1?ns=docker.io"


def test_credentials_go_to_the_registry_and_never_to_a_mirror(certs: Path) -> None:
    write(certs, "reg.example", '[host."https://mirror.example"]\n')
    mirror, own = found("reg.example", ME, config_path=(str(certs),))
    assert not mirror.credential
    assert own.credential == ME.credential
    assert own.credential_source == "the request"


def test_files_are_found_beside_hosts_toml(certs: Path) -> None:
    directory = write(
        certs,
        "_default",
        'ca = ["one.pem", "/abs.pem"]\nclient = [["c.pem", "k.pem"], ["both.pem"]]\n'
        'dial_timeout = "1m3s"\nskip_verify = true\nallowed_realms = ["auth.example"]\n'
        'allowed_targets = ["s3.example"]\n[header]\nX-A = "1"\nX-B = ["2", "3"]\n',
    )
    endpoints, targets = hosts.endpoints(
        "any.example", Access(), RegistrySettings(config_path=(str(certs),))
    )
    (own,) = endpoints
    assert own.base.url == "https://any.example/v2"
    assert own.tls == Tls(
        True,
        (f"{directory}/one.pem", "/abs.pem"),
        ((f"{directory}/c.pem", f"{directory}/k.pem"), (f"{directory}/both.pem", "")),
    )
    assert own.connect_s == 63
    assert own.headers == {"X-A": ("1",), "X-B": ("2", "3")}
    assert own.realms == ("auth.example",)
    assert targets == ("s3.example",)
    assert own.source == own.tls_source == f"{directory}/hosts.toml"


def test_the_first_directory_that_has_the_registry_decides(certs: Path, tmp_path: Path) -> None:
    write(certs, "reg.example_5000_", 'server = "https://one.example"\n')
    write(certs, "reg.example:5000", 'server = "https://two.example"\n')
    write(certs, "_default", 'server = "https://three.example"\n')
    other = tmp_path / "other"
    write(other, "reg.example:5000", 'server = "https://four.example"\n')
    paths = (str(tmp_path / "missing"), str(certs), str(other))
    assert urls(found("reg.example:5000", config_path=paths)) == ["https://one.example/v2"]
    assert urls(found("else.example", config_path=paths)) == ["https://three.example/v2"]
    asked = Access(hosts_dir=str(other))
    assert urls(found("reg.example:5000", asked, config_path=paths)) == ["https://four.example/v2"]


def test_dockers_directories_have_certificates_alone(certs: Path) -> None:
    directory = certs / "127.0.0.1:5000"
    directory.mkdir(parents=True)
    for name in ("ca.crt", "client.cert", "client.key"):
        (directory / name).touch()
    (own,) = found("127.0.0.1:5000", config_path=(str(certs),))
    assert own.base.url == "https://127.0.0.1:5000/v2"
    assert own.tls.ca == (f"{directory}/ca.crt",)
    assert own.tls.client == ((f"{directory}/client.cert", f"{directory}/client.key"),)
    (directory / "client.key").unlink()
    with pytest.raises(InvalidArgument, match=r"without client\.key"):
        found("127.0.0.1:5000", config_path=(str(certs),))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("server = 5", "server is 5"),
        ("= nonsense", "hosts.toml"),
        ("server = 0x" + "f" * 5000, "over 64 bits"),
        ("host = 5", "host is 5"),
        ('server = "ftp://x"', "neither http nor https"),
        ('server = "https://u:p@x"', "holds a user name"),
        ('[host."https://a"]\ncapabilities = ["pul"]', "capabilities is ['pul']"),
        ('[host."https://a"]\nca = 5', 'host."https://a".ca is 5'),
        ('[host."https://a"]\nclient = [["a", "b", "c"]]', "client is"),
        ('[host."https://a"]\nclient = 5', 'host."https://a".client is 5'),
        ('[host."https://a"]\nclient = [""]', "client is ['']"),
        ('[host."https://a"]\nclient = [["", "k"]]', "client is [['', 'k']]"),
        ('[host."https://a"]\nskip_verify = 1', "skip_verify is 1"),
        ('[host."https://a"]\ndial_timeout = "soon"', "dial_timeout is 'soon'"),
        ('[host."https://a".header]\nX = "a\\r\\nB: c"', "header.X is 'several'"),
        ('[host."https://a?b=c"]', "has a query"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(certs: Path, text: str, words: str) -> None:
    write(certs, "reg.example", text)
    with pytest.raises(InvalidArgument) as caught:
        found("reg.example", config_path=(str(certs),))
    assert words in caught.value.message
    assert "reg.example/hosts.toml" in caught.value.message


KEYS = (
    *("server", "host", "capabilities", "ca", "client", "header", "override_path", "skip_verify"),
    *("dial_timeout", "allowed_realms", "allowed_targets", "nobody's"),
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.booleans()
    | st.integers(-5, 5)
    | st.sampled_from(["", "pull", "https://a.example", "http://[::1", "3s", "//", "a b", "x@y"])
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
ADDRESSES = st.sampled_from(["https://a.example", "b:5000", "http://[::1", "//", ""]) | st.text()
TABLES = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5)


def toml(value: Any) -> str:
    """A value as TOML writes it, tables inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value).replace("\x7f", "\\u007f")


@given(TABLES, st.dictionaries(ADDRESSES, TABLES, max_size=2))
def test_whatever_a_file_holds_it_is_read_or_named(
    table: dict[str, Any], listed: dict[str, Any]
) -> None:
    table = {**table, "host": listed} if listed else table
    text = "".join(f"{json.dumps(key)} = {toml(value)}\n" for key, value in table.items())
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), "reg.example", text)
        try:
            assert found("reg.example", config_path=(folder,))
        except InvalidArgument as err:
            assert "reg.example/hosts.toml" in err.message


def test_the_older_mirrors() -> None:
    mirrors = {
        "docker.io": ("https://one.example", "http://10.0.0.1:5000", "https://h.example/v2/p/"),
        "*": ("https://any.example",),
    }
    assert urls(found("docker.io", mirrors=mirrors)) == [
        "https://one.example/v2",
        "http://10.0.0.1:5000/v2",
        "https://h.example/v2/p",
        "https://registry-1.docker.io/v2",
    ]
    *asked, own = found("docker.io", mirrors=mirrors)
    assert {item.capabilities for item in asked} == {frozenset({PULL, RESOLVE})}
    assert own.capabilities == CAPABILITIES
    assert urls(found("x.example", mirrors=mirrors)) == [
        "https://any.example/v2",
        "https://x.example/v2",
    ]
    listed = {"x.example": ("https://x.example",)}
    (listed_own,) = found("x.example", mirrors=listed)
    assert urls([listed_own]) == ["https://x.example/v2"]
    assert listed_own.capabilities == CAPABILITIES
    plain = {"harbor.example": ("http://harbor.example",)}
    assert urls(found("harbor.example", mirrors=plain)) == [
        "http://harbor.example/v2",
        "https://harbor.example/v2",
    ]


def test_configs_add_tls_and_credentials_by_exact_host() -> None:
    configs = {
        "m.example:5000": HostConfig(Tls(ca=("/ca",)), Credential("mirror", "mirrors-password")),
        "x.example": HostConfig(Tls(skip_verify=True)),
    }
    mirrors = {"x.example": ("https://m.example:5000", "https://m.example:5001")}
    one, two, own = found("x.example", ME, mirrors=mirrors, configs=configs)
    assert one.credential == Credential("mirror", "mirrors-password")
    assert one.credential_source == "registry.configs of c.toml"
    assert one.tls == Tls(ca=("/ca",))
    assert not two.credential
    assert two.tls == Tls()
    assert own.tls == Tls(skip_verify=True)
    assert own.credential == ME.credential


def test_dockers_hub_may_have_its_own_token_realm() -> None:
    (own,) = found("docker.io", ME)
    assert own.may_give_secret_to(hosts.link("https://auth.docker.io/token", "x").origin)
    assert not own.may_give_secret_to(hosts.link("http://auth.docker.io/token", "x").origin)
    assert not own.may_give_secret_to(hosts.link("https://auth.docker.io:444/token", "x").origin)
    assert not own.may_give_secret_to(hosts.link("https://xauth.docker.io/token", "x").origin)
    (other,) = found("reg.example", ME)
    assert not other.may_give_secret_to(hosts.link("https://auth.docker.io/token", "x").origin)


def test_no_secret_is_in_a_repr() -> None:
    assert "my-password" not in repr(found("reg.example", ME))
