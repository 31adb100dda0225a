"""containerd's API over TCP: TLS, and only for clients with a certificate of one authority.

The files are read once: a new certificate is taken at the manager's next start, which containers
do not notice.
"""

import ssl
from dataclasses import dataclass

import grpc

from lighter.proto.errors import FailedPrecondition, words_of

MAX_PEM = 1 << 20


@dataclass(frozen=True)
class Tls:
    """Where to listen, and paths of PEM files: what the server shows, and who may come."""

    address: str
    certificate: str
    key: str
    clients_ca: str


def credentials(tls: Tls) -> grpc.ServerCredentials:
    """Raises FailedPrecondition naming the file that cannot be used."""
    certificate, key, ca = map(_read, (tls.certificate, tls.key, tls.clients_ca))
    # gRPC would find out at the first client, and tell only that one.
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.certificate, tls.key, password=_no_password)
    except (OSError, ValueError) as err:
        what = f"{tls.certificate} with {tls.key}"
        raise FailedPrecondition(f"use certificate {what}: {words_of(err)}") from err
    try:
        context.load_verify_locations(tls.clients_ca)
    except OSError as err:
        raise FailedPrecondition(
            f"use certificate authority {tls.clients_ca}: {words_of(err)}"
        ) from err
    return grpc.ssl_server_credentials(
        [(key, certificate)], root_certificates=ca, require_client_auth=True
    )


def _no_password() -> str:
    raise ValueError("the key is encrypted, and nobody is here to type its password")


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_PEM)
    except OSError as err:
        raise FailedPrecondition(f"read {path}: {err.strerror}") from err
