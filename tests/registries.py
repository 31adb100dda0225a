"""Registries for tests, all on loopback addresses: Debian's own, and one that does as it is told.

    DebianRegistry   the `docker-registry` program: plain or TLS, open, htpasswd or tokens
    TokenServer      a token realm that Debian's registry believes; records what it was sent
    Scripted         answers what the test says, however wrong, and records what it was sent
    Authority        a certificate authority of the test's own

Each is a context manager that owns its processes, threads and files.
"""

import base64
import contextlib
import gzip
import hashlib
import io
import json
import secrets
import shutil
import socket
import ssl
import struct
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

from lighter.daemon.types import Descriptor

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

USER = "admin"
PASSWORD = "Harbor12345-the-secret"

_START_S = 20.0
_STEP_S = 0.02


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def describe(media_type: str, data: bytes) -> Descriptor:
    return Descriptor(media_type, digest_of(data), len(data))


@dataclass(frozen=True)
class SmallImage:
    """A manifest with what it names, by digest."""

    manifest: bytes
    blobs: Mapping[str, bytes]

    @property
    def descriptor(self) -> Descriptor:
        return describe(OCI_MANIFEST, self.manifest)

    @property
    def layers(self) -> list[Descriptor]:
        return [
            Descriptor(item["mediaType"], item["digest"], item["size"])
            for item in json.loads(self.manifest)["layers"]
        ]

    @property
    def config(self) -> Descriptor:
        item = json.loads(self.manifest)["config"]
        return Descriptor(item["mediaType"], item["digest"], item["size"])


def small_image(*layer_sizes: int, seed: int = 1, arch: str = "amd64") -> SmallImage:
    """A real image: a layer per size, each a gzip of a tar with one file of that many bytes."""
    import random

    chance = random.Random(seed)
    blobs: dict[str, bytes] = {}
    diff_ids, layers = [], []
    for number, size in enumerate(layer_sizes or (1000,)):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            info = tarfile.TarInfo(f"file-{number}")
            info.size = size
            tar.addfile(info, io.BytesIO(chance.randbytes(size)))
        plain = buffer.getvalue()
        packed = gzip.compress(plain, compresslevel=1, mtime=0)
        diff_ids.append(digest_of(plain))
        blobs[digest_of(packed)] = packed
        layers.append({"mediaType": OCI_LAYER, "digest": digest_of(packed), "size": len(packed)})
    config = json.dumps(
        {
            "architecture": arch,
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
    ).encode()
    blobs[digest_of(config)] = config
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {
                "mediaType": OCI_CONFIG,
                "digest": digest_of(config),
                "size": len(config),
            },
            "layers": layers,
        }
    ).encode()
    return SmallImage(manifest, blobs)


# -- certificates


class Authority:
    """A certificate authority of its own, by openssl(1). `ca` is its certificate's path."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.ca = directory / "ca.crt"
        self._key = directory / "ca.key"
        self._run(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", str(self._key), "-out", str(self.ca), "-days", "30"),
            *("-subj", "/CN=tests of lighter", "-addext", "keyUsage=critical,keyCertSign"),
        )

    def issue(self, name: str, *hosts: str, rsa: bool = False) -> tuple[Path, Path]:
        """(certificate, key) for these names and addresses, for servers and clients alike."""
        certificate, key = self._directory / f"{name}.crt", self._directory / f"{name}.key"
        request, extensions = self._directory / f"{name}.csr", self._directory / f"{name}.ext"
        kind = ("rsa:2048",) if rsa else ("ec", "-pkeyopt", "ec_paramgen_curve:P-256")
        self._run(
            *("req", "-newkey", *kind, "-nodes", "-keyout", str(key), "-out", str(request)),
            *("-subj", f"/CN={name}"),
        )
        names = ",".join(f"{'IP' if _is_ip(host) else 'DNS'}:{host}" for host in hosts)
        extensions.write_text(
            f"subjectAltName={names or 'DNS:none.test'}\nextendedKeyUsage=serverAuth,clientAuth\n"
        )
        self._run(
            *("x509", "-req", "-in", str(request), "-CA", str(self.ca), "-CAkey", str(self._key)),
            *("-CAcreateserial", "-days", "30", "-out", str(certificate)),
            *("-extfile", str(extensions)),
        )
        return certificate, key

    def _run(self, *arguments: str) -> None:
        subprocess.run(
            [needed("openssl", "openssl"), *arguments], check=True, capture_output=True, timeout=60
        )


def _is_ip(host: str) -> bool:
    return host.replace(".", "").isdigit()


def needed(program: str, package: str) -> str:
    """The program's path. Raises AssertionError when it is missing: .ci/setup installs it."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/bin")
    assert path, f"{program} is missing: install {package} (.ci/setup does)"
    return path


def free_port(host: str = "127.0.0.1") -> int:
    return free_ports(1, host)[0]


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Different ones: each is held until all are known."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((host, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


# -- Debian's registry


class DebianRegistry:
    """The distribution project's registry. `host` is what stands in a reference: address:port.

    `htpasswd`: USER and PASSWORD are wanted. `tls`: (certificate, key). `tokens`: a realm.
    """

    def __init__(
        self,
        directory: Path,
        *,
        address: str = "127.0.0.1",
        htpasswd: bool = False,
        tls: tuple[Path, Path] | None = None,
        client_ca: Path | None = None,
        tokens: "TokenServer | None" = None,
        port: int = 0,
    ) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.port = port or free_port(address)
        self.log = directory / "log"
        self._address = address
        self._is_free_to_move = not port  # until it has been reached somewhere
        self._process: subprocess.Popen[bytes] | None = None
        self._config = directory / "config.yml"
        self._parts = self._settings(htpasswd, tls, client_ca, tokens)

    @property
    def host(self) -> str:
        return f"{self._address}:{self.port}"

    def _settings(
        self,
        htpasswd: bool,
        tls: tuple[Path, Path] | None,
        client_ca: Path | None,
        tokens: "TokenServer | None",
    ) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "info"},
            "storage": {
                "filesystem": {"rootdirectory": str(self.directory / "data")},
                "delete": {"enabled": True},
            },
            "http": {"secret": "the same after a restart"},
        }
        if tls:
            settings["http"]["tls"] = {"certificate": str(tls[0]), "key": str(tls[1])}
            if client_ca:
                settings["http"]["tls"]["clientcas"] = [str(client_ca)]
        if htpasswd:
            users = self.directory / "htpasswd"
            done = subprocess.run(
                [needed("htpasswd", "apache2-utils"), "-Bbn", USER, PASSWORD],
                check=True,
                capture_output=True,
            )
            users.write_bytes(done.stdout)
            settings["auth"] = {"htpasswd": {"realm": "tests", "path": str(users)}}
        if tokens:
            settings["auth"] = {"token": tokens.settings()}
        return settings

    def start(self) -> "DebianRegistry":
        """Where another process was faster to take the port, at another one."""
        while not self._listens():
            self.port = free_port(self._address)
        self._is_free_to_move = False
        return self

    def _listens(self) -> bool:
        """False if its port was taken, and it may have another."""
        http = {**self._parts["http"], "addr": self.host}
        self._config.write_text(json.dumps({**self._parts, "http": http}))  # YAML holds JSON
        with self.log.open("ab") as log:
            said_before = log.tell()
            self._process = subprocess.Popen(
                [needed("docker-registry", "docker-registry"), "serve", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": "/usr/bin:/bin", "OTEL_TRACES_EXPORTER": "none"},
            )
        end = time.monotonic() + _START_S
        while True:
            has_ended = self._process.poll() is not None
            said = self.log.read_bytes()[said_before:].decode(errors="replace")
            # No connection is tried: another process may answer there.
            if f"listening on {self.host}" in said:
                return True
            if has_ended:
                taken = "bind: address already in use" in said
                assert taken and self._is_free_to_move, f"docker-registry ended\n{said[-2000:]}"
                return False
            assert time.monotonic() < end, f"docker-registry does not listen\n{said[-2000:]}"
            time.sleep(_STEP_S)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> "DebianRegistry":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


# -- a server that does as it is told


@dataclass(frozen=True)
class Request:
    """What a server was sent. `headers` by name in small letters."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    raw: bytes  # the head as it came

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query)


@dataclass(frozen=True)
class Reply:
    """One answer. Content-Length is added unless `headers` has one, or `chunked`.

    `delay_s` before the head; `stop_at` ends after that many bytes of the body, by `end`: "close",
    "reset" or "silence" (until the client gives up). `pace` sends body in pieces of (bytes, pause).
    `endless` repeats the body until the client closes. `raw` is sent as it is, in place of all.
    """

    status: int = 200
    body: bytes = b""
    headers: Sequence[tuple[str, str]] = ()
    delay_s: float = 0.0
    stop_at: int | None = None
    end: str = "close"
    pace: tuple[int, float] | None = None
    endless: bool = False
    raw: bytes | None = None

    def with_headers(self, *headers: tuple[str, str]) -> "Reply":
        return replace(self, headers=(*self.headers, *headers))


Answer = Reply | Callable[[Request], Reply]


def redirect(location: str, status: int = 307) -> Reply:
    return Reply(status, headers=(("Location", location),))


def error(status: int, code: str = "", message: str = "", **headers: str) -> Reply:
    body = json.dumps({"errors": [{"code": code, "message": message}]}).encode() if code else b""
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return Reply(status, body, (("Content-Type", "application/json"), *named))


def bearer(realm: str, service: str = "tests") -> Reply:
    value = f'Bearer realm="{realm}",service="{service}"'
    return error(401, "UNAUTHORIZED", "who are you", WWW_Authenticate=value)


BASIC = error(401, "UNAUTHORIZED", "who are you", WWW_Authenticate='Basic realm="tests"')


class Scripted:
    """A server on `address`. `requests` is what it was sent, in order of arrival.

    `routes`: by "METHOD path" (without query) what to answer: one Answer for always, or a list that
    is used up but for its last. Without a route the answer is 404, with `default` that.
    """

    def __init__(
        self,
        address: str = "127.0.0.1",
        *,
        tls: tuple[Path, Path] | None = None,
        default: Answer | None = None,
        port: int = 0,
    ) -> None:
        self.address = address
        self.default: Answer = default or error(404, "NOT_FOUND", "no such thing here")
        self.routes: dict[str, Answer | list[Answer]] = {}
        self.requests: list[Request] = []
        self.connections = 0
        self.plaintext: list[bytes] = []  # what came without TLS to a server with it, or with it
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._over = threading.Event()
        self._context: ssl.SSLContext | None = None
        if tls:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(*map(str, tls))
        self._socket = socket.create_server((address, port), backlog=128)
        self.port = int(self._socket.getsockname()[1])
        self.host = f"{address}:{self.port}"
        self.url = f"{'https' if tls else 'http'}://{self.host}"
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> "Scripted":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)

    # -- what it has

    def serve(self, image: SmallImage, repository: str, *tags: str) -> None:
        """Have an image, as a registry has it."""
        reply = Reply(
            body=image.manifest,
            headers=(
                ("Content-Type", OCI_MANIFEST),
                ("Docker-Content-Digest", image.descriptor.digest),
            ),
        )
        for name in (*tags, image.descriptor.digest):
            self.route(f"/v2/{repository}/manifests/{name}", reply)
        for digest, data in image.blobs.items():
            self.route(f"/v2/{repository}/blobs/{digest}", blob(data))

    def serve_index(self, repository: str, tag: str, *images: tuple[SmallImage, str]) -> Descriptor:
        """Have images, each with its architecture, as one; returns the index."""
        entries = []
        for image, arch in images:
            self.serve(image, repository)
            of = image.descriptor
            entry = {"mediaType": of.media_type, "digest": of.digest, "size": of.size}
            entries.append({**entry, "platform": {"os": "linux", "architecture": arch}})
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        data = json.dumps(document).encode()
        index = describe(OCI_INDEX, data)
        for name in (tag, index.digest):
            reply = Reply(body=data, headers=(("Content-Type", OCI_INDEX),))
            self.route(f"/v2/{repository}/manifests/{name}", reply)
        return index

    def route(self, path: str, answer: Answer | list[Answer]) -> None:
        """The answer to both HEAD and GET."""
        self.routes[f"HEAD {path}"] = answer
        self.routes[f"GET {path}"] = list(answer) if isinstance(answer, list) else answer

    # -- what it was sent

    def sent(self, name: str) -> list[str]:
        """All values of a header that came."""
        return [item.headers[name] for item in list(self.requests) if name in item.headers]

    def asked(self, method: str = "", ending: str = "") -> list[Request]:
        return [
            item
            for item in list(self.requests)
            if method in ("", item.method) and item.path.endswith(ending)
        ]

    @property
    def everything(self) -> bytes:
        """All bytes that came, heads and bodies."""
        parts = [item.raw + item.body for item in list(self.requests)]
        return b"".join((*parts, *self.plaintext))

    # -- its threads

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        plain = connection
        try:
            if self._context:
                first = connection.recv(1, socket.MSG_PEEK)
                if first and first != b"\x16":  # no TLS handshake
                    self.plaintext.append(connection.recv(65536))
                    return
                connection = self._context.wrap_socket(connection, server_side=True)
            elif connection.recv(1, socket.MSG_PEEK) == b"\x16":  # TLS, which it has not
                self.plaintext.append(connection.recv(65536))
                connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
                return
            connection.settimeout(60)
            reader = connection.makefile("rb")
            while not self._over.is_set() and self._one(connection, reader):
                pass
        except (OSError, ValueError):
            pass
        finally:
            with self._lock:
                self._open.discard(plain)
            with contextlib.suppress(OSError):
                connection.close()

    def _one(self, connection: socket.socket, reader: Any) -> bool:
        """Read a request, answer it; whether the connection goes on."""
        request = _read_request(reader, connection)
        if request is None:
            return False
        with self._lock:
            self.requests.append(request)
            answer = self.routes.get(f"{request.method} {request.path}", self.default)
            if isinstance(answer, list):
                answer = answer.pop(0) if len(answer) > 1 else answer[0]
        reply = answer(request) if callable(answer) else answer
        return self._send(connection, request, reply)

    def _send(self, connection: socket.socket, request: Request, reply: Reply) -> bool:
        if reply.delay_s and self._over.wait(reply.delay_s):
            return False
        if reply.raw is not None:
            self._send_body(connection, reply.raw, reply.pace)
            return self._end(connection, reply.end)
        names = {name.lower() for name, _ in reply.headers}
        headers = list(reply.headers)
        if "content-length" not in names and not reply.endless:
            headers.append(("Content-Length", str(len(reply.body))))
        head = f"HTTP/1.1 {reply.status} Scripted\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers)
        connection.sendall(head.encode("latin-1") + b"\r\n")
        if request.method == "HEAD":
            return True
        body = reply.body if reply.stop_at is None else reply.body[: reply.stop_at]
        while True:
            self._send_body(connection, body, reply.pace)
            if not reply.endless:
                break
        if reply.stop_at is not None:
            return self._end(connection, reply.end)
        return "content-length" in names or not reply.endless

    def _send_body(
        self, connection: socket.socket, body: bytes, pace: tuple[int, float] | None
    ) -> None:
        if pace is None:
            connection.sendall(body)
            return
        size, pause_s = pace
        for start in range(0, len(body), size):
            connection.sendall(body[start : start + size])
            if self._over.wait(pause_s):
                return

    def _end(self, connection: socket.socket, how: str) -> bool:
        if how == "silence":
            with contextlib.suppress(OSError):
                connection.settimeout(None)
                connection.recv(1)  # until the client closes
        elif how == "reset":
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        return False


def _read_request(reader: Any, connection: socket.socket) -> Request | None:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = reader.readline(65537)
        if not line:
            return None
        head += line
        if head == b"\r\n":
            head = b""
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = {
        name.strip().lower(): value.strip()
        for name, colon, value in (line.partition(":") for line in lines)
        if colon
    }
    if headers.get("expect", "").lower() == "100-continue":
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = b""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int(reader.readline(), 16):
            body += reader.read(size)
            reader.readline()
        reader.readline()
    elif "content-length" in headers:
        body = reader.read(int(headers["content-length"]))
    return Request(method, target, headers, body, head)


def blob(data: bytes, **changes: Any) -> Callable[[Request], Reply]:
    """Serves bytes, and ranges of them. `changes` are of the Reply, for all of its answers."""

    def answer(request: Request) -> Reply:
        start = 0
        headers = [("Content-Type", "application/octet-stream"), ("Accept-Ranges", "bytes")]
        wanted = request.headers.get("range", "")
        if wanted.startswith("bytes="):
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers.append(("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}"))
        reply = Reply(206 if start else 200, data[start:], tuple(headers))
        return replace(reply, **changes)

    return answer


# -- tokens


@dataclass
class TokenServer:
    """A token realm: gives a token to whoever comes, or to USER with PASSWORD alone (`wanted`).

    Its tokens are JSON Web Tokens signed by openssl(1) (RS256, certificate within), which is what
    Debian's registry believes when it is made with `tokens=` this.
    """

    authority: Authority
    directory: Path
    address: str = "127.0.0.1"
    wanted: bool = False
    identity_token: str = ""
    life_s: int = 300
    service: str = "tests"
    tokens: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._certificate, self._key = self.authority.issue("tokens", "tokens.test", rsa=True)
        self.server = Scripted(self.address)
        self.server.routes["GET /token"] = self._get
        self.server.routes["POST /token"] = self._post
        self.realm = f"{self.server.url}/token"

    def __enter__(self) -> "TokenServer":
        self.server.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.server.__exit__(kind, error, trace)

    def settings(self) -> dict[str, str]:
        """For the registry's configuration."""
        return {
            "realm": self.realm,
            "service": self.service,
            "issuer": "lighter-tests",
            "rootcertbundle": str(self.authority.ca),
        }

    def _get(self, request: Request) -> Reply:
        pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        given = request.headers.get("authorization", "")
        if (self.wanted or given) and given != f"Basic {pair}":
            return error(401, "UNAUTHORIZED", "wrong user or password")
        return self._token(request.query.get("scope", []))

    def _post(self, request: Request) -> Reply:
        form = parse_qs(request.body.decode())
        if form.get("grant_type") != ["refresh_token"] or form.get("refresh_token") != [
            self.identity_token
        ]:
            return error(401, "UNAUTHORIZED", "wrong refresh token")
        return self._token(form.get("scope", [""])[0].split())

    def _token(self, scopes: Iterable[str]) -> Reply:
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        token = self._signed(access)
        self.tokens.append(token)
        body = json.dumps({"token": token, "expires_in": self.life_s}).encode()
        return Reply(200, body, (("Content-Type", "application/json"),))

    def _signed(self, access: list[dict[str, Any]]) -> str:
        now = int(time.time())
        der = ssl.PEM_cert_to_DER_cert(self._certificate.read_text())
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        claims = {
            "iss": "lighter-tests",
            "sub": USER,
            "aud": self.service,
            "exp": now + self.life_s,
            "nbf": now - 10,
            "iat": now,
            "jti": secrets.token_hex(8),
            "access": access,
        }
        text = ".".join(_b64(json.dumps(part).encode()) for part in (header, claims))
        signature = subprocess.run(
            [needed("openssl", "openssl"), "dgst", "-sha256", "-sign", str(self._key)],
            input=text.encode(),
            check=True,
            capture_output=True,
        ).stdout
        return f"{text}.{_b64(signature)}"


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@contextlib.contextmanager
def many(*servers: Any) -> Iterator[None]:
    """Enter several servers at once."""
    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.enter_context(server)
        yield
