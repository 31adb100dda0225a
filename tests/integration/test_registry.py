"""Log in, pull, push and look: ctl, lighterd and Debian's registry, all real."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from lighter.daemon.images.reference import Reference
from lighter.daemon.registry.access import Access, Credential
from tests.contract.test_registry import client, push, run
from tests.harness import Lighterd
from tests.registries import (
    PASSWORD,
    USER,
    Authority,
    DebianRegistry,
    Reply,
    Scripted,
    TokenServer,
    error,
    small_image,
)

IMAGE = small_image(100_000, 10)
KNOWN = Access(Credential(USER, PASSWORD))
PAIR = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


def publish(made: DebianRegistry, access: Access) -> str:
    """Put the image there; returns its name."""
    name = f"{made.host}/team/x:1"

    async def work() -> None:
        async with client().remote(Reference.parse(name), access) as remote:
            await push(remote, IMAGE)

    run(work())
    return name


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    return tmp_path / "docker"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[DebianRegistry]:
    with DebianRegistry(tmp_path / "registry", htpasswd=True) as made:
        yield made


def login(lighterd: Lighterd, host: str, password: str, *args: str) -> Any:
    words = ("login", "-u", USER, "--password-stdin", *args, host)
    return lighterd.ctl(*words, input=f"{password}\n".encode())


def test_login_pull_logout(lighterd: Lighterd, docker: Path, registry: DebianRegistry) -> None:
    name = publish(registry, KNOWN)
    refused = login(lighterd, registry.host, "wrong-password-of-mine")
    assert refused.returncode == 1
    assert registry.host.encode() in refused.stderr
    assert b"401" in refused.stderr
    assert b"wrong-password" not in refused.stderr
    assert not docker.exists()
    before = lighterd.ctl("images", "pull", "--no-unpack", name)
    assert before.returncode == 1
    assert b"no credential" in before.stderr
    done = login(lighterd, registry.host, PASSWORD)
    assert done.returncode == 0, done.stderr
    lighterd.ctl("images", "pull", "--no-unpack", name, check=True)
    lighterd.ctl("logout", registry.host, check=True)
    after = lighterd.ctl("images", "pull", "--no-unpack", f"{registry.host}/team/x:2")
    assert b"no credential" in after.stderr


def test_login_at_a_registry_that_asks_nobody(
    lighterd: Lighterd, docker: Path, tmp_path: Path
) -> None:
    with DebianRegistry(tmp_path / "open") as made:
        done = login(lighterd, made.host, "whatever")
        assert done.returncode == 0, done.stderr
        assert f"{made.host} did not ask for a credential".encode() in done.stdout


@pytest.mark.parametrize("root", [error(401), error(403, "DENIED", "not here"), error(404)])
def test_registry_test_goes_on_where_the_root_lets_nobody_in(
    lighterd: Lighterd, root: Reply
) -> None:
    with Scripted() as made:
        made.serve(IMAGE, "team/x", "2")
        made.routes["GET /v2/"] = root
        done = lighterd.ctl("registry", "test", f"{made.host}/team/x:2")
        text = done.stdout.decode()
        assert done.returncode == 0, text + done.stderr.decode()
        assert f"{root.status}  GET {made.url}/v2/" in text
        assert f"has it: {IMAGE.descriptor.digest}" in text
        absent = lighterd.ctl("registry", "test", f"{made.host}/team/y:2")
        assert absent.returncode == 1
        assert b"failed: resolve" in absent.stdout


def test_sec_31_the_manager_keeps_no_secret(
    lighterd: Lighterd, docker: Path, registry: DebianRegistry
) -> None:
    """Not in its log at level debug, its database, its files, or any command line."""
    name = publish(registry, KNOWN)
    assert login(lighterd, registry.host, PASSWORD).returncode == 0
    lighterd.ctl("images", "pull", name, check=True)
    lighterd.ctl("images", "pull", "-u", f"{USER}:wrong-password-of-mine", name)
    lighterd.ctl("--debug", "registry", "test", name, check=True)
    again = lighterd.ctl("--debug", "images", "pull", f"{registry.host}/nothing:1")
    assert again.returncode == 1
    shown = again.stderr + again.stdout
    files = [lighterd.log, *(path for path in lighterd.root.rglob("*") if path.is_file())]
    files += [path for path in lighterd.state.rglob("*") if path.is_file()]
    assert any(path.name == "lighter.db" for path in files)
    manager = psutil.Process(lighterd.pid)
    lines = [process.cmdline() for process in (manager, *manager.children(recursive=True))]
    for secret in (PASSWORD, PAIR, "wrong-password-of-mine"):
        assert secret not in str(lines)
        assert secret.encode() not in shown
        for path in files:
            assert secret.encode() not in path.read_bytes(), path


def test_registry_test_shows_every_step(
    make_lighterd: Callable[..., Lighterd], docker: Path, tmp_path: Path
) -> None:
    """A mirror that lacks the image, and the registry behind it with its own CA and password."""
    authority = Authority(tmp_path / "ca")
    tls = authority.issue("registry", "127.0.0.1")
    certs = tmp_path / "certs.d"
    with DebianRegistry(tmp_path / "r", tls=tls, htpasswd=True) as made, Scripted() as mirror:
        name = publish(made, Access(KNOWN.credential, ca=str(authority.ca)))
        directory = certs / made.host
        directory.mkdir(parents=True)
        (directory / "hosts.toml").write_text(
            f'server = "https://{made.host}"\nca = "{authority.ca}"\n'
            f'[host."{mirror.url}"]\ncapabilities = ["pull", "resolve"]\n'
        )
        config = f'[plugins."io.lighter.v1".registry]\nconfig_path = "{certs}"\n'
        lighterd = make_lighterd(config=config).start()
        words = ("registry", "test", "-u", f"{USER}:{PASSWORD}", name)
        done = lighterd.ctl(*words)
        text = done.stdout.decode()
        assert done.returncode == 0, text + done.stderr.decode()
        for expected in (
            f"host {mirror.url}/v2",
            f"{directory}/hosts.toml",
            "none, plain http",
            f"host https://{made.host}/v2",
            f"CA {authority.ca}",
            "password, of the request",
            f"401  GET https://{made.host}/v2/",
            f"200  GET https://{made.host}/v2/ with Basic",
            f"has it: {IMAGE.descriptor.digest}",
        ):
            assert expected in text, text
        assert PASSWORD not in text
        assert PAIR not in text
        assert mirror.sent("authorization") == []
        lines = lighterd.ctl("--format", "json", *words, check=True).stdout.splitlines()
        kinds = [json.loads(line).get("kind") for line in lines]
        assert kinds[0] == "host"
        assert {"host", "request", "result", None} == set(kinds)
        lighterd.ctl("images", "pull", "-u", f"{USER}:{PASSWORD}", name, check=True)


def test_sec_27_login_names_a_realm_elsewhere_and_keeps_the_consent(
    lighterd: Lighterd, docker: Path, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "ca")
    with TokenServer(authority, tmp_path / "t", wanted=True) as tokens:
        with DebianRegistry(tmp_path / "r", tokens=tokens) as made:
            realm = tokens.server.host
            name = publish(made, Access(KNOWN.credential, realms=(realm,)))
            tokens.server.requests.clear()
            refused = login(lighterd, made.host, PASSWORD)
            assert refused.returncode == 1
            assert f"--allow-realm {realm}".encode() in refused.stderr
            assert tokens.server.requests == []
            done = login(lighterd, made.host, PASSWORD, "--allow-realm", realm)
            assert done.returncode == 0, done.stderr
            lighterd.ctl("images", "pull", "--no-unpack", name, check=True)
            assert (docker / "config.json").stat().st_mode & 0o777 == 0o600


def test_a_refresh_token_pulls(lighterd: Lighterd, tmp_path: Path) -> None:
    secret = "identity-token-of-mine"
    authority = Authority(tmp_path / "ca")
    with TokenServer(authority, tmp_path / "t", wanted=True, identity_token=secret) as tokens:
        with DebianRegistry(tmp_path / "r", tokens=tokens) as made:
            realm = tokens.server.host
            name = publish(made, Access(KNOWN.credential, realms=(realm,)))
            hosts = tmp_path / "certs.d" / made.host
            hosts.mkdir(parents=True)
            (hosts / "hosts.toml").write_text(
                f'server = "http://{made.host}"\nallowed_realms = ["{realm}"]\n'
            )
            pull = ("images", "pull", "--no-unpack", "--hosts-dir", str(hosts.parent), "--refresh")
            refused = lighterd.ctl(*pull, "another-token", name)
            assert refused.returncode == 1 and b"another-token" not in refused.stderr
            lighterd.ctl(*pull, secret, name, check=True)


def test_a_reload_takes_over_registries(
    make_lighterd: Callable[..., Lighterd], docker: Path, tmp_path: Path
) -> None:
    with DebianRegistry(tmp_path / "r") as made:
        publish(made, Access())
        lighterd = make_lighterd(config="version = 3\n").start()
        name = "harbor.example/team/x:1"
        assert lighterd.ctl("images", "pull", "--no-unpack", name).returncode == 1
        (lighterd.base / "config.toml").write_text(
            'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\n'
            '[plugins."io.containerd.grpc.v1.cri".registry.mirrors."harbor.example"]\n'
            f'endpoint = ["http://{made.host}"]\n'
            '[plugins."io.containerd.grpc.v1.cri".registry.configs."other.example".auth]\n'
            'username = "u"\npassword = "password-in-config"\n'
        )
        done = lighterd.ctl("system", "reload", check=True)
        assert b"registry" in done.stdout
        lighterd.ctl("images", "pull", "--no-unpack", name, check=True)
        assert b"password-in-config" not in done.stdout + lighterd.log.read_bytes()


def test_the_manager_starts_without_what_speaks_http(lighterd: Lighterd) -> None:
    """aiohttp is loaded by the first use of a registry (here one that nobody listens at)."""

    def loaded() -> bool:
        maps = Path(f"/proc/{lighterd.pid}/maps").read_text()
        return "/aiohttp/" in maps

    assert not loaded()
    assert lighterd.ctl("registry", "test", "127.0.0.1:1/x").returncode == 1
    assert loaded()
