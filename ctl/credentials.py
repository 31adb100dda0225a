"""Whose credential a registry is shown: that of --user or --refresh, else what `ctl login` or
docker has kept.

    $DOCKER_CONFIG/config.json, else ~/.docker/config.json
      auths        host -> {auth: base64 of user:password} or {identitytoken}
      credHelpers  host -> NAME of a program docker-credential-NAME that has it
      credsStore   NAME of the one that has all others

A host gets what stands for exactly this host, with this port (SEC-30). A program that is missing is
an error: the user has said where the credential is, and nothing else is to be tried. .netrc is not
read.
"""

import base64
import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

from lighter.proto.errors import FailedPrecondition, InvalidArgument, words_of
from lighter.proto.references import DEFAULT_REGISTRY, split_registry

DOCKER_HUB_KEY = "https://index.docker.io/v1/"
TOKEN_USER = "<token>"  # noqa: S105 (what helpers call the user of an identity token)
HELPER_S = 60.0

DOCKER_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_MAX_FILE_BYTES = 1 << 20
_REALMS = "allowedRealms"  # ours; docker leaves it alone until it logs in there itself

Fields = dict[str, Any]


def credentials_for(reference: str, user: str, refresh: str) -> Fields:
    """The credential's fields of a request's `access`; all "" for none.

    Without a password it is asked for on the terminal, not shown. Raises InvalidArgument where
    there is none, or for a file that is not docker's, FailedPrecondition for a missing program.
    """
    if refresh:
        return _fields(identity_token=refresh)
    name, colon, secret = user.partition(":")
    if not name:
        return CredentialFile.of_this_user().find(split_registry(reference)[0])
    return _fields(name, secret if colon else password_of(name, reference))


def password_of(name: str, place: str) -> str:
    """Asked for on the terminal without echo. Raises InvalidArgument where there is none."""
    import getpass
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", getpass.GetPassWarning)
            return getpass.getpass(f"Password of {name} for {place}: ")
    except getpass.GetPassWarning as err:
        raise InvalidArgument(
            f"read password of {name}: there is no terminal to ask at without showing it; "
            "-u NAME:PASSWORD, or --password-stdin of login"
        ) from err
    except EOFError as err:
        raise InvalidArgument(f"read password of {name}: there is none") from err


def _fields(
    username: str = "", secret: str = "", identity_token: str = "", realms: tuple[str, ...] = ()
) -> Fields:
    return {
        "username": username,
        "secret": secret,
        "identity_token": identity_token,
        "realms": list(realms),
    }


class CredentialFile:
    """Docker's file at `path`; one that does not exist is empty."""

    def __init__(self, path: str) -> None:
        self.path = path

    @classmethod
    def of_this_user(cls) -> "CredentialFile":
        directory = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
        return cls(os.path.join(directory, "config.json"))

    def find(self, host: str) -> Fields:
        """What stands for a registry, as fields of `access`. Raises as `credentials_for`."""
        document = self._read()
        key, entry = self._entry(document, host)
        realms = tuple(text for text in entry.get(_REALMS, ()) if isinstance(text, str))
        helper = self._helper(document, host)
        if helper:
            return {**Helper(helper).get(key or key_of(host)), "realms": list(realms)}
        return self._plain(host, entry, realms)

    def _plain(self, host: str, entry: Mapping[str, Any], realms: tuple[str, ...]) -> Fields:
        texts = {
            name: entry.get(name, "") for name in ("username", "password", "auth", "identitytoken")
        }
        if not all(isinstance(text, str) for text in texts.values()):
            raise InvalidArgument(f"read {self.path}: what stands for {host} is not all text")
        username, secret = texts["username"], texts["password"]
        if texts["auth"]:
            try:
                pair = base64.b64decode(texts["auth"], validate=True).decode().strip("\0")
            except ValueError as err:
                raise InvalidArgument(
                    f"read {self.path}: auth of {host} is not user:password in base64"
                ) from err
            username, _, secret = pair.partition(":")
        if texts["identitytoken"]:
            return _fields(username, identity_token=texts["identitytoken"], realms=realms)
        return _fields(username, secret, realms=realms)

    def _entry(self, document: Mapping[str, Any], host: str) -> tuple[str, Mapping[str, Any]]:
        """(key, value) in `auths` of exactly this host; ("", {}) for none."""
        auths = document.get("auths") or {}
        for key, value in auths.items() if isinstance(auths, dict) else ():
            if _is_for(key, host) and isinstance(value, dict):
                return key, value
        return "", {}

    def _helper(self, document: Mapping[str, Any], host: str) -> str:
        helpers = document.get("credHelpers") or {}
        for key, name in helpers.items() if isinstance(helpers, dict) else ():
            if _is_for(key, host) and isinstance(name, str):
                return name
        store = document.get("credsStore") or ""
        return store if isinstance(store, str) else ""

    def keep(self, host: str, username: str, secret: str, realms: tuple[str, ...]) -> str:
        """Keep a credential; returns where. Raises as `credentials_for`, and for a full disk."""
        document = self._read()
        key = self._entry(document, host)[0] or key_of(host)
        helper = self._helper(document, host)
        entry: dict[str, Any] = {}
        if helper:
            Helper(helper).store(key, username, secret)
        else:
            entry["auth"] = base64.b64encode(f"{username}:{secret}".encode()).decode()
        if realms:
            entry[_REALMS] = list(realms)
        document.setdefault("auths", {})[key] = entry
        self._write(document)
        return f"docker-credential-{helper}" if helper else self.path

    def forget(self, host: str) -> bool:
        """Remove what stands for a host. False when there was nothing."""
        document = self._read()
        key, _ = self._entry(document, host)
        helper = self._helper(document, host)
        gone = bool(helper) and Helper(helper).erase(key or key_of(host))
        if key:
            del document["auths"][key]
            self._write(document)
        return gone or bool(key)

    def _read(self) -> dict[str, Any]:
        try:
            with open(self.path, "rb") as file:
                data = file.read(_MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return {}
        except OSError as err:
            raise InvalidArgument(f"read {self.path}: {err.strerror}") from err
        if len(data) > _MAX_FILE_BYTES:
            raise InvalidArgument(f"read {self.path}: over {_MAX_FILE_BYTES} bytes")
        try:
            document = json.loads(data.decode("utf-8")) if data.strip() else {}
        except (ValueError, RecursionError) as err:
            raise InvalidArgument(f"read {self.path}: it is not JSON") from err
        if not isinstance(document, dict):
            raise InvalidArgument(f"read {self.path}: it is not a JSON object")
        return document

    def _write(self, document: Mapping[str, Any]) -> None:
        """Write a temporary file (mode 0600) and rename it. A link is kept: the file that it leads
        to is replaced.
        """
        path = os.path.realpath(self.path)
        directory = os.path.dirname(path)
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            fd, temporary = tempfile.mkstemp(prefix=".config.json.", dir=directory)
            try:
                with open(fd, "w", encoding="utf-8") as file:
                    json.dump(document, file, indent="\t")
                    file.flush()
                    os.fsync(file.fileno())
                os.rename(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
        except OSError as err:
            raise FailedPrecondition(f"write {self.path}: {err.strerror}") from err


def key_of(host: str) -> str:
    """Under what name docker keeps a registry's credential."""
    return DOCKER_HUB_KEY if host == DEFAULT_REGISTRY else host


def _is_for(key: object, host: str) -> bool:
    """Whether a key of docker's file, "host:port" or "https://host:port/v1/", is this host's."""
    if not isinstance(key, str):
        return False
    scheme, mark, rest = key.rpartition("://")
    if mark and scheme not in ("http", "https"):
        return False
    named = rest.partition("/")[0].lower()
    if host == DEFAULT_REGISTRY:
        return named in DOCKER_HUB
    return named == host.lower()


class Helper:
    """A program docker-credential-NAME (github.com/docker/docker-credential-helpers)."""

    def __init__(self, name: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name, re.ASCII):
            raise InvalidArgument(f"use credential helper {name!r}: it is no name of a program")
        self._program = f"docker-credential-{name}"

    def get(self, key: str) -> Fields:
        """The credential kept under `key`; all "" for none."""
        code, output = self._run("get", key)
        if code != 0:
            if "not found" in output.lower():
                return _fields()
            raise FailedPrecondition(f"ask {self._program} for {key}: it ends with {code}")
        try:
            answer = json.loads(output)
            username, secret = str(answer["Username"]), str(answer["Secret"])
        except (ValueError, KeyError, TypeError) as err:
            raise FailedPrecondition(f"ask {self._program} for {key}: no credential in it") from err
        if username == TOKEN_USER:
            return _fields(identity_token=secret)
        return _fields(username, secret)

    def store(self, key: str, username: str, secret: str) -> None:
        document = {"ServerURL": key, "Username": username, "Secret": secret}
        code, _ = self._run("store", json.dumps(document))
        if code != 0:
            raise FailedPrecondition(f"have {self._program} keep {key}: it ends with {code}")

    def erase(self, key: str) -> bool:
        return self._run("erase", key)[0] == 0

    def _run(self, verb: str, words: str) -> tuple[int, str]:
        import subprocess

        path = shutil.which(self._program)
        if path is None:
            raise FailedPrecondition(
                f"use {self._program}: it is not in PATH, and the credentials are said to be there"
            )
        attempt = f"run {path} {verb}"
        try:
            done = subprocess.run(
                [path, verb],
                input=words.encode(),
                capture_output=True,
                timeout=HELPER_S,
                check=False,
            )
        except subprocess.TimeoutExpired as err:
            raise FailedPrecondition(f"{attempt}: it has not ended in {HELPER_S:g} s") from err
        except OSError as err:
            raise FailedPrecondition(f"{attempt}: {words_of(err, attempt)}") from err
        return done.returncode, done.stdout.decode(errors="replace").strip()
