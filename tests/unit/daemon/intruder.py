"""A peer that is another process, of another user if need be, and says what it is told to say."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from lighter.proto import codec

_PROGRAM = """
import json, os, select, sys
from lighter.proto import codec
from lighter.proto.dealer import Dealer

path, routing_id, identity, messages = json.loads(sys.argv[1])
dealer = Dealer(path, bytes.fromhex(routing_id), 65536)
assert dealer.connect()

def next_message():
    while select.select([dealer], [], [], 20)[0]:
        for frames in dealer.receive():
            return codec.decode(frames)
        assert not dealer.lost, "cut off"
    raise AssertionError("nothing came")

welcome = next_message()
if identity is not None:
    hello = codec.Hello(welcome.generation, 1, [], {"pid": os.getpid(), **identity})
    assert dealer.send(codec.encode(hello))
for kind, fields in messages:
    message = getattr(codec, kind)(welcome.generation, *fields)
    assert dealer.send(codec.encode(message))
print("said", flush=True)
if any(kind == "Request" for kind, _ in messages):
    message = next_message()
    print(getattr(message, "code", "done"), flush=True)
sys.stdin.read()
"""


class Intruder:
    """It connects with `routing_id`, says hello unless `identity` is None, then each of `messages`,
    and stays. Expects an answer when one of them is a request.
    """

    def __init__(
        self,
        path: str,
        identity: dict[str, Any] | None,
        messages: Sequence[codec.Message] = (),
        routing_id: bytes = b"",
        uid: int = 65534,
        gid: int = 65534,
        groups: Sequence[int] = (),
    ) -> None:
        said = [(type(one).__name__, list(one)[1:]) for one in messages]
        order = json.dumps([path, routing_id.hex(), identity, said])
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _PROGRAM, order],
            user=uid,
            group=gid,
            extra_groups=groups,
            env={"PATH": os.environ["PATH"], "HOME": "/"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.pid = self._process.pid

    def __enter__(self) -> "Intruder":
        assert self._line() == "said"
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.communicate()

    def answer(self) -> str:
        """How its request was answered: the code of an error, or "done"."""
        return self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().rstrip("\n")
