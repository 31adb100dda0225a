"""What happens on the way to an image, step by step: `ctl registry test`, and `ctl login`'s check.

Nothing is stored. Each host that might be asked is, also those behind one that has the image.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from lighter.daemon.images.reference import Reference
from lighter.daemon.registry.access import Access
from lighter.daemon.registry.client import Remote
from lighter.daemon.registry.conversation import Conversation
from lighter.daemon.registry.endpoints import PULL, RESOLVE, Endpoint
from lighter.daemon.registry.registries import Registries
from lighter.daemon.registry.transport import Step
from lighter.proto.errors import LighterError, NotFound, PermissionDenied

# The root of the API; its answer says whether there is one, and who may come in (distribution-spec,
# "Determining Support").
_ROOT = ""


@dataclass(frozen=True)
class Item:
    """`kind`: host, request, or result; `fields` are plain values without a secret."""

    kind: str
    fields: dict[str, Any]


async def test(registries: Registries, reference: Reference, access: Access) -> AsyncIterator[Item]:
    """Ask every host of the reference's registry for it. Raises as Registries.remote."""
    steps: list[Step] = []
    talk = await registries.conversation(reference.domain, access, steps.append)
    try:
        for endpoint in talk.endpoints:
            yield Item("host", _host(endpoint, talk))
            error, digest = "", ""
            try:
                digest = await _one(talk.only(endpoint), endpoint, reference)
            except LighterError as err:
                error = err.message
            for step in steps:
                yield Item("request", _request(step))
            steps.clear()
            yield Item("result", {"host": str(endpoint.origin), "digest": digest, "error": error})
    finally:
        await talk.close()


async def _one(talk: Conversation, endpoint: Endpoint, reference: Reference) -> str:
    is_source = {RESOLVE, PULL} <= endpoint.capabilities
    try:
        await _root(talk, endpoint)
    except (NotFound, PermissionDenied):
        # Below a path there may be no root, and not everybody may come in who may have an image.
        if not is_source:
            raise
    if not is_source:
        return ""

    async def same() -> Conversation:
        return talk

    remote = Remote(reference, same)
    async with remote:
        found = await remote.resolve()
        await remote.document(found)
    return found.digest


async def _root(talk: Conversation, endpoint: Endpoint) -> None:
    async with talk.ask(
        endpoint,
        "GET",
        endpoint.link(_ROOT),
        f"reach the API of {talk.name}",
        frozenset(),
        expect=(200,),
    ):
        pass


async def login(registries: Registries, domain: str, access: Access) -> tuple[str, bool]:
    """Whether a registry takes the credential: the host that did, and whether it asked for it.

    Raises PermissionDenied when it does not, or when it wants it sent elsewhere, which the detail
    `realm` then names.
    """
    talk = await registries.conversation(domain, access)
    try:
        endpoint = talk.endpoints[-1]
        await talk.retried(lambda: _root(talk, endpoint))
        return str(endpoint.origin), talk.was_asked(endpoint)
    finally:
        await talk.close()


def _host(endpoint: Endpoint, talk: Conversation) -> dict[str, Any]:
    tls = endpoint.tls
    return {
        "url": endpoint.base.url,
        "source": endpoint.source,
        "capabilities": sorted(endpoint.capabilities),
        "ca": list(tls.ca),
        "client_certificates": [certificate for certificate, _ in tls.client],
        "skip_verify": tls.skip_verify,
        "tls_source": endpoint.tls_source,
        "credential": endpoint.credential.kind,
        "credential_source": endpoint.credential_source,
        "headers": sorted(endpoint.headers),
        "proxy": talk.transport.proxy_of(endpoint.origin),
    }


def _request(step: Step) -> dict[str, Any]:
    return {
        "method": step.method,
        "url": step.url,
        "status": step.status,
        "sent": step.sent,
        "note": step.note,
    }
