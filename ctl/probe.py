"""Why a socket stays silent: found out with a plain connection, once ZeroMQ had no answer.

libzmq sends its greeting at once (ZMTP 3.1: first byte 0xff). A gRPC server sends HTTP/2 SETTINGS
(RFC 9113, section 6.5), some of them only after the client's preface.
"""

import socket

from lighter.proto.errors import InvalidArgument, PermissionDenied

ANSWER_S = 0.1
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_ZMTP = 0xFF
_SETTINGS = 4


def why_silent(path: str) -> str:
    """Why nobody answers at `path` yet, in a few words.

    Raises PermissionDenied, or InvalidArgument for a socket that never will: another protocol's.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(ANSWER_S)
        try:
            client.connect(path)
            first = _first_bytes(client)
        except PermissionError as err:
            raise PermissionDenied(f"connect {path}: {err.strerror}") from err
        except FileNotFoundError:
            return "the socket does not exist"
        except ConnectionRefusedError:
            return "nobody listens on it"
        except OSError as err:
            return (err.strerror or str(err)).lower()
    if is_http2(first):
        raise InvalidArgument(
            f"connect {path}: a gRPC server answers there; ctl needs lighterd's own socket, "
            "lighter.sock"
        )
    if first and first[0] != _ZMTP:
        raise InvalidArgument(f"connect {path}: the server there does not speak ZeroMQ")
    return "a process listens but does not answer"


def is_http2(data: bytes) -> bool:
    """Whether `data` begins with a SETTINGS frame of stream 0."""
    return len(data) >= 9 and data[3] == _SETTINGS and data[5:9] == bytes(4)


def _first_bytes(client: socket.socket) -> bytes:
    for ask in (b"", _PREFACE):
        try:
            if ask:
                client.sendall(ask)
            if data := client.recv(64):
                return data
        except TimeoutError:
            continue
        except ConnectionResetError:
            return b""
    return b""
