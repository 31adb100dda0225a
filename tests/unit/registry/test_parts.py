"""The small parts of the registry client: challenges, addresses, proxies, redaction, pauses."""

import ipaddress
import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighter.daemon.registry import challenge, redact
from lighter.daemon.registry.addresses import Origin, Targets, is_public, link
from lighter.daemon.registry.challenge import Challenge
from lighter.daemon.registry.failures import (
    MAX_ERROR_BYTES,
    Answered,
    Broken,
    TooMany,
    from_answer,
    may_retry,
    registry_message,
    retry_after_s,
)
from lighter.daemon.registry.proxies import Proxies
from lighter.daemon.registry.redact import Redactor
from lighter.daemon.registry.retry import Backoff
from lighter.proto.errors import InvalidArgument, NotFound, PermissionDenied, Unavailable

# -- challenges


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (['Basic realm="x"'], [Challenge("basic", {"realm": "x"})]),
        (
            ['Bearer realm="https://a/t",service="s",scope="repository:x:pull,push"'],
            [
                Challenge(
                    "bearer",
                    {"realm": "https://a/t", "service": "s", "scope": "repository:x:pull,push"},
                )
            ],
        ),
        (
            ['bearer REALM = https://a/t , error="x\\"y"'],
            [Challenge("bearer", {"realm": "https://a/t", "error": 'x"y'})],
        ),
        (
            ['Negotiate, Basic realm="x"', "Bearer realm=y"],
            [
                Challenge("negotiate"),
                Challenge("basic", {"realm": "x"}),
                Challenge("bearer", {"realm": "y"}),
            ],
        ),
        ([""], []),
        (["Bearer"], [Challenge("bearer")]),
        (['"'], []),
        (['Bearer realm="unfinished'], [Challenge("bearer")]),
    ],
)
def test_challenges(values: list[str], expected: list[Challenge]) -> None:
    found = challenge.parse(values)
    assert found[: len(expected)] == expected


@given(st.lists(st.text(), max_size=20))
def test_no_challenge_is_too_odd(values: list[str]) -> None:
    assert len(challenge.parse(values)) <= challenge.MAX_CHALLENGES


@pytest.mark.parametrize(
    "value",
    [
        *("Bearer " + 'a="\\' * 4000, "B " + 'x="' + "\\a" * 4000, "a " * 4000),
        *("B a=" + " " * 8180 + '"', "B a=" + " " * 8180 + "y z"),
    ],
)
def test_a_long_challenge_takes_no_time(value: str) -> None:
    began = time.thread_time()
    challenge.parse([value] * challenge.MAX_CHALLENGES)
    assert time.thread_time() - began < 2


# -- addresses


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://Reg.Example/v2", Origin("https", "reg.example", 443)),
        ("http://127.0.0.1:5000/x?y=1#z", Origin("http", "127.0.0.1", 5000)),
        ("https://[::1]:8/", Origin("https", "::1", 8)),
    ],
)
def test_links(url: str, origin: Origin) -> None:
    found = link(url, "use x")
    assert found.origin == origin
    assert "#" not in found.url


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "unix:/run/x", "ftp://a/b", "//a/b", "a/b", "", "https://"),
        *("https://u@a/", "https://u:p@a/", "http://a\\@b/", "http://a b/", "http://a\r\nX: y/"),
        *("http://a:0/", "http://a:99999/", "http://[::1/", "http://[fe80::1%eth0]/"),
        *("http://ä.example/", "http://a" + "a" * 9000, "http://-a/", "javascript:alert(1)"),
        *("http://127.1/", "http://2130706433/", "http://0x7f.1/", "http://a.0x7f/", "http://1."),
    ],
)
def test_what_is_no_link(url: str) -> None:
    with pytest.raises(InvalidArgument):
        link(url, "use x")


@given(st.text(max_size=200))
def test_a_link_is_an_origin_or_refused(text: str) -> None:
    try:
        found = link(f"https://{text}", "use x")
    except InvalidArgument:
        return
    assert found.origin.host
    assert "@" not in found.url.partition("://")[2].partition("/")[0]


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        *((item, False) for item in ("127.0.0.1", "10.1.1.1", "172.16.0.1", "192.168.1.1")),
        *((item, False) for item in ("169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1")),
        *((item, False) for item in ("::1", "::", "fe80::1", "fd00::1", "ff02::1")),
        *((item, False) for item in ("::ffff:127.0.0.1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::")),
        ("::ffff:8.8.8.8", True),
    ],
)
def test_sec_28_which_addresses_everybody_means_the_same_by(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


def test_sec_28_targets() -> None:
    targets = Targets({"reg.example"}, ("minio.example:9000", "10.0.0.0/8", "192.168.1.1"))
    private = [ipaddress.ip_address("127.0.0.1")]
    ten, public = [ipaddress.ip_address("10.9.9.9")], [ipaddress.ip_address("8.8.8.8")]
    assert targets.usable("reg.example", 443, private, "x") == private
    assert targets.usable("minio.example", 9000, private, "x") == private
    assert targets.usable("cdn.example", 443, public, "x") == public
    assert targets.usable("cdn.example", 443, ten, "x") == ten
    assert targets.usable("cdn.example", 443, public + private, "x") == public
    for host, port in (("minio.example", 9001), ("cdn.example", 443), ("xreg.example", 443)):
        with pytest.raises(PermissionDenied, match="allowed_targets"):
            targets.usable(host, port, private, "x")
    for url in ("http://127.0.0.1/", "http://localhost/", "http://x.localhost/", "http://[::1]/"):
        with pytest.raises(PermissionDenied, match="allowed_targets"):
            targets.check(link(url, "x").origin, "x")
    targets.check(link("http://192.168.1.1/", "x").origin, "x")


def test_sec_29_localhost_is_this_machine_whatever_a_name_server_says() -> None:
    targets = Targets({"localhost"})
    found = [ipaddress.ip_address("8.8.8.8"), ipaddress.ip_address("127.0.0.1")]
    assert targets.usable("localhost", 5000, found, "x") == found[1:]


# -- proxies


@pytest.mark.parametrize(
    ("url", "no_proxy", "proxy"),
    [
        ("https://reg.example/", "", "http://p:1"),
        ("http://reg.example/", "", "http://q:2"),
        ("https://reg.example/", "*", ""),
        ("https://reg.example/", "reg.example", ""),
        ("https://a.reg.example/", "reg.example", ""),
        ("https://reg.example/", ".reg.example", "http://p:1"),
        ("https://a.reg.example/", ".reg.example", ""),
        ("https://areg.example/", "reg.example", "http://p:1"),
        ("https://reg.example:5000/", "reg.example:5000", ""),
        ("https://reg.example/", "reg.example:5000", "http://p:1"),
        ("https://10.1.2.3/", "10.0.0.0/8", ""),
        ("https://11.1.2.3/", "10.0.0.0/8, 11.1.2.3", ""),
        ("https://127.0.0.1/", "", ""),
        ("http://localhost:5000/", "", ""),
    ],
)
def test_proxies(url: str, no_proxy: str, proxy: str) -> None:
    proxies = Proxies("q:2", "http://p:1", no_proxy)
    assert proxies.proxy_of(link(url, "x").origin) == proxy


def test_proxies_of_the_environment() -> None:
    found = Proxies.from_environment({"https_proxy": "p", "HTTP_PROXY": "q", "NO_PROXY": "n"})
    assert found == Proxies("q", "p", "n")
    assert not Proxies.from_environment({})


# -- redaction


def test_sec_31_what_is_known_as_secret_is_hidden() -> None:
    redactor = Redactor()
    redactor.learn_basic("user", "pass/word!")
    redactor.learn("token-of-mine")
    for text in (
        "pass/word!",
        "pass%2Fword%21",
        "dXNlcjpwYXNzL3dvcmQh",
        "x token-of-mine y",
    ):
        shown = redactor.clean(f"it said {text} to me")
        assert redact.HIDDEN in shown
        assert "pass/word" not in shown
        assert "token-of" not in shown
        assert "dXNl" not in shown


@pytest.mark.parametrize(
    "text",
    [
        "https://me:SECRET@reg.example/v2/?sig=SECRET#SECRET",
        "Authorization: Bearer SECRET.SECRET",
        "Authorization: basic SECRETSECRET=",
        '{"access_token": "SECRET"}',
        "refresh_token=SECRET&x=y",
        "password: SECRET",
        "see " + "x" * 40 + "://me:SECRET@reg.example/",
    ],
)
def test_sec_31_what_looks_like_a_secret_is_hidden(text: str) -> None:
    assert "SECRET" not in Redactor().clean(text)


def test_what_a_registry_says_cannot_move_a_cursor_or_fill_a_page() -> None:
    shown = Redactor().clean("a\x1b[2J\r\nb" + "c" * 10_000)
    assert shown.isprintable()
    assert len(shown) == redact.MAX_TEXT


def test_sec_32_no_text_of_a_registry_takes_long_to_clean() -> None:
    spent = []
    for text in ("a " * (MAX_ERROR_BYTES // 2), "a." * (MAX_ERROR_BYTES // 2)):
        began = time.thread_time()
        Redactor().clean(text)
        spent.append(time.thread_time() - began)
    assert spent[1] < 50 * spent[0]


@given(st.text())
def test_a_url_without_its_secrets_is_always_made(text: str) -> None:
    assert isinstance(redact.url(text), str)


# -- failures


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ("", 0, 0),
        ("7", 7, 7),
        ("0", 0, 0),
        ("-5", 0, 0),
        ("99999999999999999999999", 1e9, 1e9),
        ("soon", 0, 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
    ],
)
def test_f66_retry_after(value: str, least: float, most: float) -> None:
    assert least <= retry_after_s(value) <= most


def test_f66_retry_after_a_date() -> None:
    value = formatdate(time.time() + 100, usegmt=True)
    assert 50 <= retry_after_s(value) <= 101


def test_f66_pauses_grow_are_spread_and_have_an_end() -> None:
    backoff = Backoff()
    for failures in range(1, 20):
        limit = min(0.25 * 2 ** (failures - 1), backoff.most_s)
        pauses = {backoff.pause_s(failures, Broken("x")) for _ in range(20)}
        assert len(pauses) > 1
        assert all(limit / 2 <= pause <= limit for pause in pauses)
    assert backoff.pause_s(1, TooMany("x", 7)) == 7
    assert backoff.pause_s(1, Answered("x", 1e9)) == backoff.most_asked_s


def test_errors_say_what_the_registry_said() -> None:
    body = b'{"errors":[{"code":"DENIED","message":"no \\u001b[31mway"}]}'
    error = from_answer("fetch x from h", 403, body, "", Redactor())
    assert isinstance(error, PermissionDenied)
    assert error.message == "fetch x from h: the registry answers 403: DENIED: no [31mway"
    assert not may_retry(error)
    missing = from_answer("fetch x", 404, b"<html>", "", Redactor())
    assert isinstance(missing, NotFound)
    assert missing.message.endswith("404: it is not there")
    busy = from_answer("fetch x", 503, b"", "3", Redactor())
    assert isinstance(busy, Unavailable)
    assert may_retry(busy)
    assert not may_retry(from_answer("fetch x", 599, b"", "", Redactor()))


@given(st.binary(max_size=300))
def test_no_body_is_too_odd(body: bytes) -> None:
    assert isinstance(registry_message(body), str)


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"errors": {}}', b'{"errors": [[]]}', b"5"])
def test_odd_bodies_say_nothing(body: bytes) -> None:
    assert registry_message(body) == ""
