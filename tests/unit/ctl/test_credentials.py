"""Where ctl finds credentials: docker's file, helper programs, the exact host (SEC-30)."""

import base64
import contextlib
import json
import os
import pty
import stat
from pathlib import Path
from typing import Any

import pytest

from lighter.ctl.credentials import CredentialFile, credentials_for
from lighter.proto.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from tests.fakes.manager import Ask, FakeManager
from tests.unit.ctl.conftest import CTL, Ctl, Start

NONE = {"username": "", "secret": "", "identity_token": "", "realms": []}
PAIR = base64.b64encode(b"me:my:password").decode()
MINE = {**NONE, "username": "me", "secret": "my:password"}

# The protocol of docker-credential-helpers; it keeps a file per key.
HELPER = """#!/usr/bin/env python3
import json, os, sys
place = os.environ["HELPER_PLACE"]
words = sys.stdin.read()
name = lambda key: os.path.join(place, key.encode().hex())
if sys.argv[1] == "store":
    document = json.loads(words)
    json.dump(document, open(name(document["ServerURL"]), "w"))
elif sys.argv[1] == "erase":
    os.unlink(name(words))
else:
    try:
        print(open(name(words)).read())
    except FileNotFoundError:
        print("credentials not found in native keychain")
        sys.exit(1)
"""


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of docker's file; HOME has a .netrc that must not matter."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text("default login me password my-password\n")
    (tmp_path / "docker").mkdir()
    return tmp_path / "docker"


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """docker-credential-tests in PATH; returns where it keeps things."""
    programs, place = tmp_path / "bin", tmp_path / "kept"
    programs.mkdir()
    place.mkdir()
    program = programs / "docker-credential-tests"
    program.write_text(HELPER.replace("/usr/bin/env python3", os.path.realpath("/usr/bin/python3")))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("HELPER_PLACE", str(place))
    return place


def write(docker: Path, document: Any) -> None:
    (docker / "config.json").write_text(json.dumps(document))


def find(reference: str) -> dict[str, Any]:
    return credentials_for(reference, "", "")


@pytest.mark.parametrize(
    "key", ["reg:5000", "https://reg:5000", "https://reg:5000/v1/", "REG:5000"]
)
def test_sec_30_a_host_gets_what_stands_for_it_exactly(docker: Path, key: str) -> None:
    write(docker, {"auths": {key: {"auth": PAIR}}})
    assert find("reg:5000/x") == MINE
    for other in (
        *("reg/x", "reg:5001/x", "reg:50000/x", "xreg:5000/x", "reg.example:5000/x", "x:1", "x"),
        *("evil.example/reg:5000", "evil.example/reg:5000/x", "reg.evil:5000/x"),
    ):
        assert find(other) == NONE, other


@pytest.mark.parametrize(
    "reference", ["reg:5000@evil.example/x", "evil.example/x@reg:5000", "user@reg:5000/x"]
)
def test_sec_30_no_name_confuses_the_look_up(docker: Path, reference: str) -> None:
    """The manager refuses these names; ctl does not find the password for them either."""
    write(docker, {"auths": {"reg:5000": {"auth": PAIR}}})
    assert find(reference) == NONE


@pytest.mark.parametrize(
    "key", ["https://index.docker.io/v1/", "docker.io", "index.docker.io", "registry-1.docker.io"]
)
def test_docker_hub_has_many_names(docker: Path, key: str) -> None:
    write(docker, {"auths": {key: {"auth": PAIR}}})
    assert find("nginx:alpine") == find("docker.io/library/nginx") == MINE
    assert find("quay.io/nginx") == NONE


def test_other_forms_of_an_entry(docker: Path) -> None:
    write(
        docker,
        {
            "auths": {
                "token.example": {"auth": PAIR, "identitytoken": "t"},
                "plain.example": {"username": "u", "password": "p"},
                "empty.example": {},
                "realm.example": {"auth": PAIR, "allowedRealms": ["auth.example", 5]},
                "ftp://odd.example": {"auth": PAIR},
            }
        },
    )
    assert find("token.example/x") == {**NONE, "username": "me", "identity_token": "t"}
    assert find("plain.example/x") == {**NONE, "username": "u", "secret": "p"}
    assert find("empty.example/x") == NONE
    assert find("realm.example/x") == {**MINE, "realms": ["auth.example"]}
    assert find("odd.example/x") == NONE


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", "5", '{"auths": {"reg:5000": {"auth": 5}}}'),
        *('{"auths": {"reg:5000": {"auth": "%%%"}}}', "[" * 100_000, "\xff"),
    ],
)
def test_a_file_that_is_not_dockers_is_named(docker: Path, text: str) -> None:
    (docker / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidArgument, match=r"docker/config\.json"):
        find("reg:5000/x")


def test_no_file_is_no_credential(docker: Path) -> None:
    assert find("reg:5000/x") == NONE


def test_options_come_before_the_file(docker: Path) -> None:
    write(docker, {"auths": {"reg:5000": {"auth": PAIR}}})
    assert credentials_for("reg:5000/x", "you:yours", "") == {
        **NONE,
        "username": "you",
        "secret": "yours",
    }
    assert credentials_for("reg:5000/x", "you:yours", "refresh") == {
        **NONE,
        "identity_token": "refresh",
    }


def test_helpers_are_asked_by_host_else_the_store(docker: Path, helper: Path) -> None:
    file = CredentialFile.of_this_user()
    write(docker, {"credsStore": "tests"})
    file.keep("reg:5000", "me", "my:password", ("auth.example",))
    file.keep("docker.io", "<token>", "identity", ())
    assert find("reg:5000/x") == {**MINE, "realms": ["auth.example"]}
    assert find("nginx") == {**NONE, "identity_token": "identity"}
    assert find("other.example/x") == NONE
    assert "my:password" not in (docker / "config.json").read_text()
    assert len(list(helper.iterdir())) == 2
    write(docker, {"credHelpers": {"reg:5000": "tests"}, "auths": {"b:1": {"auth": PAIR}}})
    assert find("reg:5000/x") == MINE
    assert find("b:1/x") == MINE
    assert file.forget("reg:5000")
    assert find("reg:5000/x") == NONE


@pytest.mark.parametrize(
    "document", [{"credsStore": "gone"}, {"credHelpers": {"reg:5000": "gone"}}]
)
def test_sec_30_a_missing_helper_is_an_error(docker: Path, document: dict[str, Any]) -> None:
    """Also where the file has something for the host: the user says that it is elsewhere."""
    write(docker, {**document, "auths": {"reg:5000": {"auth": PAIR}}})
    with pytest.raises(FailedPrecondition, match="docker-credential-gone: it is not in PATH"):
        find("reg:5000/x")


@pytest.mark.parametrize("name", ["../x", "a/b", "a b", "-x", ""])
def test_a_helper_is_a_name_and_no_path(docker: Path, name: str) -> None:
    write(docker, {"credHelpers": {"reg:5000": name}, "credsStore": name})
    if not name:
        assert find("reg:5000/x") == NONE
        return
    with pytest.raises(InvalidArgument, match="no name of a program"):
        find("reg:5000/x")


def test_what_is_kept_is_for_the_user_alone_and_leaves_the_rest(docker: Path) -> None:
    write(docker, {"auths": {"a.example": {"auth": PAIR}}, "HttpHeaders": {"X": "y"}})
    (docker / "config.json").chmod(0o644)
    file = CredentialFile.of_this_user()
    file.keep("reg:5000", "me", "my:password", ())
    assert stat.S_IMODE((docker / "config.json").stat().st_mode) == 0o600
    document = json.loads((docker / "config.json").read_text())
    assert document == {
        "auths": {"a.example": {"auth": PAIR}, "reg:5000": {"auth": PAIR}},
        "HttpHeaders": {"X": "y"},
    }
    assert [entry.name for entry in docker.iterdir()] == ["config.json"]
    assert file.forget("reg:5000")
    assert not file.forget("reg:5000")
    assert find("a.example/x") == MINE


def test_a_new_file_is_made_with_its_directory(docker: Path) -> None:
    docker.rmdir()
    CredentialFile.of_this_user().keep("docker.io", "me", "my:password", ())
    assert stat.S_IMODE(docker.stat().st_mode) == 0o700
    assert find("nginx") == MINE


# -- the commands


def login(ctl: Ctl, *args: str, password: bytes = b"my:password\n", **env: str) -> Any:
    return ctl("login", "--username", "me", "--password-stdin", *args, input=password, env=env)


def test_login_asks_the_manager_and_then_keeps(
    docker: Path, ctl: Ctl, manager: FakeManager
) -> None:
    manager.on("registry.login", {"host": "https://reg:5000"})
    done = login(ctl, "--allow-realm", "auth.example", "reg:5000")
    assert done.returncode == 0, done.stderr
    ask = manager.asked("registry.login")
    assert ask.body["server"] == "reg:5000"
    access = ask.body["access"]
    assert (access["username"], access["secret"]) == ("me", "my:password")
    assert access["realms"] == ["auth.example"]
    assert find("reg:5000/x") == {**MINE, "realms": ["auth.example"]}
    assert b"password" not in done.stdout + done.stderr
    done = ctl("logout", "reg:5000")
    assert done.returncode == 0, done.stderr
    assert find("reg:5000/x") == NONE
    assert ctl("logout", "reg:5000").returncode == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [({}, b"succeeded"), ({"asked": True}, b"succeeded"), ({"asked": False}, b"did not ask")],
)
def test_login_tells_whether_the_credential_was_tried(
    docker: Path, ctl: Ctl, manager: FakeManager, answer: dict[str, Any], words: bytes
) -> None:
    manager.on("registry.login", {"host": "https://reg:5000", **answer})
    done = login(ctl, "reg:5000")
    assert done.returncode == 0, done.stderr
    assert words in done.stdout
    assert str(docker).encode() in done.stdout
    assert find("reg:5000/x") == MINE


@pytest.mark.parametrize("server", ["harbor", "https://harbor/", "harbor/team"])
def test_a_server_that_no_image_can_name_is_sent_nothing(
    docker: Path, ctl: Ctl, manager: FakeManager, server: str
) -> None:
    """An image of harbor/x is Docker Hub's: so its credential would be taken for that one."""
    hub = {"auths": {"https://index.docker.io/v1/": {"auth": PAIR}}}
    write(docker, hub)
    manager.on("registry.login", {"host": "https://registry-1.docker.io"})
    for done in (login(ctl, server), ctl("logout", server)):
        assert done.returncode == 1
        assert b"with a domain or a port" in done.stderr
    assert not manager.was_asked("registry.login")
    assert json.loads((docker / "config.json").read_text()) == hub


@pytest.mark.parametrize("server", ["docker.io", "https://index.docker.io/v1/"])
def test_docker_hub_by_its_own_names(
    docker: Path, ctl: Ctl, manager: FakeManager, server: str
) -> None:
    manager.on("registry.login", {"host": "https://registry-1.docker.io"})
    done = login(ctl, server)
    assert done.returncode == 0, done.stderr
    assert find("nginx") == MINE


def test_a_login_that_fails_keeps_nothing(docker: Path, ctl: Ctl, manager: FakeManager) -> None:
    manager.on("registry.login", PermissionDenied("reach reg:5000: 401", realm="auth.example"))
    done = login(ctl, "reg:5000")
    assert done.returncode == 1
    assert b"401" in done.stderr
    assert not (docker / "config.json").exists()
    assert login(ctl, "reg:5000", password=b"\n").returncode == 1


def test_pull_sends_what_login_has_kept(docker: Path, ctl: Ctl, manager: FakeManager) -> None:
    write(docker, {"auths": {"reg:5000": {"auth": PAIR, "allowedRealms": ["auth.example"]}}})
    manager.on("images.pull", NotFound("no"))
    ctl("images", "pull", "reg:5000/x:1")
    access = manager.asked("images.pull").body["access"]
    assert {name: access[name] for name in NONE} == {**MINE, "realms": ["auth.example"]}
    ctl("images", "pull", "reg:5001/x:1")
    access = manager.asked("images.pull").body["access"]
    assert {name: access[name] for name in NONE} == NONE


def test_login_asks_at_the_terminal_without_echo_and_for_consent(
    docker: Path, ctl: Ctl, manager: FakeManager, environment: dict[str, str]
) -> None:
    def answer(ask: Ask) -> Any:
        if ask.body["access"]["realms"]:
            return {"host": "https://reg:5000"}
        return PermissionDenied("the password is wanted elsewhere", realm="auth.example:5001")

    manager.on("registry.login", answer)
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(str(CTL), ["ctl", "login", "reg:5000"], {**environment, "TERM": "dumb"})
    shown = b""
    for question, typed in (
        (b"User name", b"me\n"),
        (b"Password of me", b"my:password\n"),
        (b"auth.example:5001", b"y\n"),
    ):
        while question not in shown:
            shown += os.read(terminal, 4096)
        os.write(terminal, typed)
    with contextlib.suppress(OSError):  # EIO: the other side has ended
        while data := os.read(terminal, 4096):
            shown += data
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, shown
    assert b"my:password" not in shown
    assert find("reg:5000/x") == {**MINE, "realms": ["auth.example:5001"]}


@pytest.mark.parametrize(
    "words", [("login", "-u", "me", "reg:5000"), ("images", "pull", "-u", "me", "reg:5000/x")]
)
def test_without_a_terminal_no_password_is_asked_for(
    docker: Path, start: Start, manager: FakeManager, words: tuple[str, ...]
) -> None:
    """In cron, say: getpass(3) would show what is typed, and tell so in lines of its own."""
    running = start(*words, start_new_session=True)
    _, err = running.communicate(b"password\n", timeout=20)
    assert (running.returncode, err.count(b"\n")) == (1, 1)
    assert err.startswith(b"ctl: read password of me: there is no terminal to ask at"), err
    assert not manager.was_asked("registry.login") and not manager.was_asked("images.pull")


@pytest.mark.parametrize("host", ["harbor.example", "localhost:5000", "127.0.0.1:5000"])
def test_a_registry_alone_is_not_tested_as_an_image_of_docker_hub(
    docker: Path, ctl: Ctl, manager: FakeManager, host: str
) -> None:
    done = ctl("registry", "test", host)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert f"such as {host}/library/nginx".encode() in done.stderr
    assert not manager.was_asked("registry.test")


def test_registry_test_prints_each_step(docker: Path, ctl: Ctl, manager: FakeManager) -> None:
    host = {
        "kind": "host",
        "url": "https://reg:5000/v2",
        "source": "/certs.d/reg/hosts.toml",
        "capabilities": ["pull"],
        "ca": ["/ca.pem"],
        "client_certificates": [],
        "skip_verify": False,
        "tls_source": "/certs.d/reg/hosts.toml",
        "credential": "password",
        "credential_source": "the request",
        "headers": ["X-A"],
        "proxy": "",
    }
    request = {"kind": "request", "method": "GET", "url": "https://reg:5000/v2/", "status": 401}
    request |= {"sent": "Basic", "note": "it asks for Basic"}
    result = {"kind": "result", "host": "reg:5000", "digest": "", "error": "it is\x1b[2J closed"}

    def answer(ask: Ask) -> Any:
        ask.items([host, request, result])
        return {"name": "reg:5000/x:1", "reached": False}

    manager.on("registry.test", answer)
    done = ctl("registry", "test", "reg:5000/x:1")
    assert done.returncode == 1
    text = done.stdout.decode()
    for words in ("/certs.d/reg/hosts.toml", "CA /ca.pem", "password, of the request", "401  GET"):
        assert words in text
    assert "\x1b" not in text
