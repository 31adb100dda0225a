"""`ctl login`, `ctl logout` and `ctl registry`: credentials, and how a registry is reached."""

import sys
from typing import Any

from lighter.ctl import grammar
from lighter.ctl.cli import Session, format_option
from lighter.ctl.credentials import DOCKER_HUB, CredentialFile, password_of
from lighter.ctl.output import print_json_line, visible
from lighter.ctl.transfer import access, registry_options
from lighter.proto.errors import InvalidArgument, NotFound, PermissionDenied
from lighter.proto.references import DEFAULT_REGISTRY, split_registry

_MAX_PASSWORD_BYTES = 64 << 10


@grammar.command("login", short_help="keep a registry's credential")
@registry_options
@grammar.option(
    "--username", default="", metavar="USER[:PASSWORD]", help="Docker's word for --user."
)
@grammar.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@grammar.option(
    "--allow-realm",
    multiple=True,
    metavar="HOST[:PORT]",
    help="Another host that may be given the password for a token.",
)
@grammar.argument("server", required=False, default=DEFAULT_REGISTRY)
def login(
    session: Session,
    /,
    server: str,
    username: str,
    password_stdin: bool,
    allow_realm: tuple[str, ...],
    **flags: Any,
) -> None:
    """Try a credential at a registry, and keep it where docker does.

    \b
      ctl login harbor.example
      ctl login -u admin --password-stdin harbor.example < password
      ctl login --allow-realm auth.example:5001 harbor.example
    """
    from lighter.ctl.asking import ask, confirm

    host = _host_of(server, "log in to")
    # Before anything is read: another version's ctl may have to go on from here.
    session.manager.connect()
    name, colon, secret = (flags.pop("user") or username).partition(":")
    name = name or ask("User name")
    if password_stdin:
        secret = _from_stdin()
    elif not colon:
        secret = password_of(name, host)
    if not secret:
        raise InvalidArgument(f"log in to {host}: the password is empty")
    file = CredentialFile.of_this_user()
    request = access(session, f"{host}/x", {**flags, "user": f"{name}:{secret}"})
    realms = allow_realm
    while True:
        try:
            asked_with = {**request, "realms": list(realms)}
            answer = session.call("registry.login", server=host, access=asked_with)
            break
        except PermissionDenied as error:
            realm = error.details.get("realm")
            if not realm or realm in realms or not sys.stdin.isatty() or password_stdin:
                raise
            question = f"{host} wants the password sent to {visible(realm)}. Send it there?"
            if not confirm(question):
                raise
            realms += (realm,)
    place = file.keep(host, name, secret, realms)
    if answer.get("asked", True):  # managers of releases before do not say
        print(f"Login succeeded; the credential is kept in {place}")
    else:
        print(f"{host} did not ask for a credential: it was not tried, and is kept in {place}")


def _host_of(server: str, act: str) -> str:
    """The registry that images of a server are looked for at.

    Raises InvalidArgument for a name that would be taken for a user of Docker Hub, which then got
    the password that is meant for another.
    """
    written = server.rpartition("://")[2].rstrip("/")
    host = split_registry(f"{written}/x")[0]
    if host == DEFAULT_REGISTRY and written.partition("/")[0].lower() not in DOCKER_HUB:
        raise InvalidArgument(
            f"{act} {written}: in an image's name it stands for a user of {DEFAULT_REGISTRY}; "
            f"name the registry as its images do, with a domain or a port"
        )
    return host


def _from_stdin() -> str:
    data = sys.stdin.buffer.read(_MAX_PASSWORD_BYTES + 1)
    if len(data) > _MAX_PASSWORD_BYTES:
        raise InvalidArgument(f"read password: over {_MAX_PASSWORD_BYTES} bytes")
    try:
        return data.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as err:
        raise InvalidArgument("read password: it is not UTF-8 text") from err


@grammar.command("logout", short_help="forget a registry's credential")
@grammar.argument("server", required=False, default=DEFAULT_REGISTRY)
def logout(_session: Session, server: str) -> None:
    """Remove a registry's credential from docker's file or its helper.

    \b
      ctl logout harbor.example
    """
    host = _host_of(server, "log out of")
    file = CredentialFile.of_this_user()
    if not file.forget(host):
        raise NotFound(f"log out of {host}: there is no credential for it in {file.path}")
    print(f"The credential for {host} is removed")


@grammar.group("registry")
def registry(_session: Session) -> None:
    """Look at registries.

    \b
      ctl registry test nginx:alpine
    """


@registry.verb("test")
@registry_options
@format_option
@grammar.argument("ref")
def test(session: Session, /, ref: str, **flags: Any) -> int:
    """show how a registry is reached: hosts, files, certificates, credentials, answers

    \b
      ctl registry test harbor.example/library/nginx:1
    """
    host = ref.partition(":")[0]
    if "/" not in ref and ("." in host or host == "localhost"):
        raise InvalidArgument(
            f"test {ref}: alone it is an image of {DEFAULT_REGISTRY}; name an image of the "
            f"registry, such as {ref}/library/nginx"
        )
    call = session.manager.begin("registry.test", name=ref, access=access(session, ref, flags))
    for item in call:
        if session.json:
            print_json_line(item)
        else:
            for line in _LINES[item["kind"]](item):
                print(visible(line), flush=True)
    if session.json:
        print_json_line(call.value)
    return 0 if call.value["reached"] else 1


def _host_lines(item: Any) -> list[str]:
    certificates = ["the system's CAs" if not item["skip_verify"] else "not verified"]
    certificates += [f"CA {path}" for path in item["ca"]]
    certificates += [f"client certificate {path}" for path in item["client_certificates"]]
    if item["url"].startswith("http://"):
        certificates = ["none, plain http"]
    credential = item["credential"]
    if item["credential_source"]:
        credential += f", of {item['credential_source']}"
    lines = [
        f"host {item['url']}",
        f"  from        {item['source']}",
        f"  may         {', '.join(item['capabilities'])}",
        f"  TLS         {', '.join(certificates)}"
        + (f" ({item['tls_source']})" if item["tls_source"] else ""),
        f"  credential  {credential}",
    ]
    if item["headers"]:
        lines.append(f"  headers     {', '.join(item['headers'])}")
    if item["proxy"]:
        lines.append(f"  proxy       {item['proxy']}")
    return lines


def _request_lines(item: Any) -> list[str]:
    sent = f" with {item['sent']}" if item["sent"] else ""
    note = f"  {item['note']}" if item["note"] else ""
    return [f"  {item['status']}  {item['method']} {item['url']}{sent}{note}"]


def _result_lines(item: Any) -> list[str]:
    if item["error"]:
        return [f"  failed: {item['error']}"]
    return [f"  has it: {item['digest']}" if item["digest"] else "  answers"]


_LINES = {"host": _host_lines, "request": _request_lines, "result": _result_lines}
