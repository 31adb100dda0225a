"""Who we are, to a registry that asks: nobody, Basic, or a Bearer token of the realm it names.

(https://distribution.github.io/distribution/spec/auth/token/ and .../oauth/.) The realm is the
registry's choice, so a password or identity token goes there only if it is the registry itself, the
pair that everybody knows (docker.io and auth.docker.io), or one that the user or the configuration
has named; an anonymous token may come from anywhere that we may reach (SEC-27).

A token is asked for our repository and, beside it, for those that the registry's challenge names:
behind a path or a proxy that renames it ours may have another name. A registry gets no more by that
than the credential allows, and that credential it may have by asking for Basic.
"""

import asyncio
import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from lighter.daemon.images.reference import is_repository
from lighter.daemon.registry import challenge
from lighter.daemon.registry.access import Credential
from lighter.daemon.registry.addresses import Link, Origin, link
from lighter.daemon.registry.answer import Answer
from lighter.daemon.registry.challenge import Challenge
from lighter.daemon.registry.endpoints import Endpoint
from lighter.daemon.registry.failures import from_answer
from lighter.daemon.registry.redact import Redactor
from lighter.daemon.registry.transport import Transport
from lighter.proto.errors import InvalidArgument, LighterError, PermissionDenied

MAX_TOKEN_BYTES = 1 << 20
CLIENT_ID = "lighter"
MAX_NAMED = 4  # repositories that a registry's challenges may add to what a token is for

_LEAST_LIFE_S = 60.0  # also what a token has that does not say (the token specification)
_MOST_LIFE_S = 3600.0
_SPARE_S = 10.0


@dataclass
class _Known:
    """What an endpoint is known to want. `named`: by our scopes, those that it has named itself."""

    basic: bool = False
    realm: Link | None = None
    service: str = ""
    tokens: dict[frozenset[str], tuple[str, float]] = field(default_factory=dict)
    named: dict[frozenset[str], frozenset[str]] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Authorizer:
    """The credentials and tokens of one conversation, each kept for its endpoint's origin."""

    def __init__(self, transport: Transport, redactor: Redactor) -> None:
        self._transport = transport
        self._redactor = redactor
        self._known: dict[Origin, _Known] = {}
        self._told: dict[Origin, Credential] = {}

    def credential(self, endpoint: Endpoint) -> Credential:
        """What is known by now of who we are there."""
        return self._told.get(endpoint.origin, endpoint.credential)

    def was_asked(self, endpoint: Endpoint) -> bool:
        """Whether the endpoint has wanted to know who we are."""
        return endpoint.origin in self._known

    async def _be_told(self, endpoint: Endpoint) -> None:
        """Ask the request's own client, once, for a host that wants to know."""
        if endpoint.ask is not None and endpoint.origin not in self._told:
            async with self._known[endpoint.origin].lock:
                if endpoint.origin not in self._told:
                    told = await endpoint.ask(endpoint.host) or endpoint.credential
                    self.learn(told)
                    self._told[endpoint.origin] = told

    def learn(self, credential: Credential) -> None:
        """A credential that may be used: its parts are never told from now on."""
        self._redactor.learn(credential.secret, credential.identity_token)
        if credential.secret:
            self._redactor.learn_basic(credential.username, credential.secret)

    async def authorization(self, endpoint: Endpoint, scopes: frozenset[str], what: str) -> str:
        """The header to send; "" as long as the endpoint has not asked. May fetch a token."""
        known = self._known.get(endpoint.origin)
        if known is None:
            return ""
        if known.basic:
            return _basic(self.credential(endpoint))
        if known.realm is None:
            return ""
        async with known.lock:
            return "Bearer " + await self._token(endpoint, known, scopes, what)

    async def challenged(
        self, endpoint: Endpoint, answer: Answer, scopes: frozenset[str], sent: str, what: str
    ) -> bool:
        """Take in a 401 that came after `sent` ("" for nothing). Whether trying again makes sense.

        Raises PermissionDenied when the credential must not go where the registry wants it.
        """
        if answer.origin != endpoint.origin:
            return False  # a host we were sent to asks: it gets nothing
        found = challenge.parse(answer.headers.getall("WWW-Authenticate", []))
        known = self._known.setdefault(endpoint.origin, _Known())
        bearer = next((one for one in found if one.scheme == "bearer"), None)
        if bearer is not None and bearer.parameters.get("realm"):
            await self._be_told(endpoint)
            self._take_bearer(known, bearer, scopes, sent, what)
            return True
        if any(one.scheme == "basic" for one in found):
            await self._be_told(endpoint)
            if not self.credential(endpoint).secret or sent.startswith("Basic "):
                return False
            known.basic, known.realm = True, None
            return True
        return False

    def _take_bearer(
        self, known: _Known, bearer: Challenge, scopes: frozenset[str], sent: str, what: str
    ) -> None:
        realm = link(bearer.parameters["realm"], f"{what}: use the registry's token realm")
        service = bearer.parameters.get("service", "")
        if not service.isprintable():
            raise InvalidArgument(f"{what}: use the registry's token realm: its service is no text")
        before = known.named.get(scopes, frozenset())
        named = before | named_by(bearer.parameters.get("scope", ""), scopes)
        if len(named) <= MAX_NAMED:
            known.named[scopes] = named
        token, _ = known.tokens.get(scopes, ("", 0.0))
        if token and sent != f"Bearer {token}":
            return  # somebody else of this conversation has a newer one
        known.basic, known.realm, known.service = False, realm, service
        known.tokens.pop(scopes, None)

    async def _token(
        self, endpoint: Endpoint, known: _Known, scopes: frozenset[str], what: str
    ) -> str:
        now = asyncio.get_running_loop().time()
        token, expires_at = known.tokens.get(scopes, ("", 0.0))
        if token and now < expires_at:
            return token
        assert known.realm is not None
        wanted = scopes | known.named.get(scopes, frozenset())
        token, life_s = await self._fetch(endpoint, known.realm, known.service, wanted, what)
        self._redactor.learn(token)
        known.tokens[scopes] = (token, now + life_s - _SPARE_S)
        return token

    async def _fetch(
        self,
        endpoint: Endpoint,
        realm: Link,
        service: str,
        scopes: frozenset[str],
        what: str,
    ) -> tuple[str, float]:
        what = f"{what}: get a token of {realm.origin}"
        if realm.origin != endpoint.origin:
            if realm.origin.scheme == "http" and endpoint.origin.scheme == "https":
                raise PermissionDenied(f"{what}: a registry with TLS has a token realm without")
            self._transport.check_target(realm, what)
        credential = self.credential(endpoint)
        if credential and not endpoint.may_give_secret_to(realm.origin):
            raise PermissionDenied(
                f"{what}: {endpoint.host} wants the {credential.kind} sent there, which is "
                f"another host; if it is right, add {realm.origin.netloc} to allowed_realms, or "
                f"log in with --allow-realm {realm.origin.netloc}",
                realm=realm.origin.netloc,
            )
        # The realm's host is asked as an endpoint of its own: it gets none of the registry's.
        at_realm = Endpoint(
            realm,
            tls=endpoint.tls if realm.origin == endpoint.origin else endpoint.tls.for_others(),
            connect_s=endpoint.connect_s,
            source=endpoint.source,
        )
        if credential.identity_token:
            body = await self._post(at_realm, service, scopes, credential, what)
        else:
            body = await self._get(at_realm, service, scopes, credential, what)
        return _read_token(body, what)

    async def _get(
        self,
        realm: Endpoint,
        service: str,
        scopes: frozenset[str],
        credential: Credential,
        what: str,
    ) -> bytes:
        pairs = [("service", service)] if service else []
        pairs += [("scope", scope) for scope in sorted(scopes)]
        if credential.username:
            pairs.append(("account", credential.username))
        sign = "&" if "?" in realm.base.url else "?"
        asked = Link(realm.base.url + (sign + urlencode(pairs) if pairs else ""), realm.origin)
        sent = _basic(credential) if credential.secret else ""
        async with self._transport.ask(
            realm, "GET", asked, what, authorization=sent, follow=True, stay=True
        ) as answer:
            return await self._body(answer, what)

    async def _post(
        self,
        realm: Endpoint,
        service: str,
        scopes: frozenset[str],
        credential: Credential,
        what: str,
    ) -> bytes:
        form = {
            "grant_type": "refresh_token",
            "refresh_token": credential.identity_token,
            "service": service,
            "client_id": CLIENT_ID,
            "scope": " ".join(sorted(scopes)),
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        data = urlencode(form).encode()
        async with self._transport.ask(
            realm, "POST", realm.base, what, headers=headers, data=data
        ) as answer:
            return await self._body(answer, what)

    async def _body(self, answer: Answer, what: str) -> bytes:
        if answer.status == 200:
            return await answer.read(MAX_TOKEN_BYTES)
        retry_after = answer.header("Retry-After")
        body = await answer.read_error()
        error: LighterError = from_answer(what, answer.status, body, retry_after, self._redactor)
        if answer.status in (400, 401, 403):
            error = PermissionDenied(error.message)
        raise error


def _basic(credential: Credential) -> str:
    pair = f"{credential.username}:{credential.secret}".encode()
    return "Basic " + base64.b64encode(pair).decode()


def _read_token(body: bytes, what: str) -> tuple[str, float]:
    """(token, seconds that it lives)."""
    try:
        document: Any = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as err:
        raise InvalidArgument(f"{what}: the answer is not JSON") from err
    token = ""
    if isinstance(document, dict):
        token = document.get("token") or document.get("access_token") or ""
    if not isinstance(token, str) or not token or not _is_header_text(token):
        raise InvalidArgument(f"{what}: there is no token in the answer")
    life_s = document.get("expires_in")
    if isinstance(life_s, bool) or not isinstance(life_s, int | float):
        life_s = _LEAST_LIFE_S
    # Compared as it came: a number of 400 digits is no float.
    return token, float(min(max(life_s, _LEAST_LIFE_S), _MOST_LIFE_S))


def _is_header_text(token: str) -> bool:
    return token.isascii() and token.isprintable() and " " not in token


def scopes_of(repository: str, actions: Sequence[str], mount_from: str = "") -> frozenset[str]:
    """What is asked of a token realm for work in a repository."""
    scopes = {f"repository:{repository}:{','.join(actions)}"}
    if mount_from:
        scopes.add(f"repository:{mount_from}:pull")
    return frozenset(scopes)


def named_by(text: str, scopes: frozenset[str]) -> frozenset[str]:
    """The further repositories in a challenge's scope, for no more than we want of our own."""
    ours = {scope.split(":")[1] for scope in scopes}
    wanted = {action for scope in scopes for action in scope.split(":")[2].split(",")}
    found = set()
    for scope in text.split(" ")[: 2 * MAX_NAMED]:
        kind, _, rest = scope.partition(":")
        name, _, actions = rest.rpartition(":")
        allowed = sorted(wanted & set(actions.split(",")))
        if kind == "repository" and allowed and name not in ours and is_repository(name):
            found.add(f"repository:{name}:{','.join(allowed)}")
    return frozenset(sorted(found)[:MAX_NAMED])
