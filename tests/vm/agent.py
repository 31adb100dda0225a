"""Runs in the virtual machine: carries out what tests/vm/machine.py asks for on a serial port.

Lines of JSON both ways. First, and after each boot, an empty line, which ends what the agent of the
boot before could not say to its end, and:

    guest: {"hello": <boot id>}
    host:  {"id": 1, "argv": ["true"], "stdin": <base64>, "timeout_s": 30.0, "env": {}}
    guest: {"id": 1, "code": 0, "stdout": <base64>, "stderr": <base64>}

`code` is negative for a signal, and null when the time was up: then the whole process group was
killed. Requests run side by side. It uses the guest's own python3 and nothing else.
"""

import base64
import json
import os
import signal
import subprocess
import threading
import time
from typing import Any, BinaryIO

PORT = "/dev/virtio-ports/lighter.agent"
MAX_OUTPUT_BYTES = 16 << 20


class Agent:
    """Reads requests from one file and answers on the other."""

    def __init__(self, requests: BinaryIO, answers: BinaryIO) -> None:
        self._requests = requests
        self._answers = answers
        self._writing = threading.Lock()

    def serve(self) -> None:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot_id = file.read().strip()
        self._answers.write(b"\n")
        self._send({"hello": boot_id})
        for line in self._requests:
            try:
                request = json.loads(line)
            except ValueError:
                continue  # the end of what was meant for an agent before this one
            threading.Thread(target=self._run, args=(request,), daemon=True).start()

    def _run(self, request: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"id": request["id"]}
        try:
            code, out, err = run(
                request["argv"],
                base64.b64decode(request["stdin"]),
                request["timeout_s"],
                request["env"],
            )
        except OSError as error:
            code, out, err = 127, b"", f"{request['argv'][0]}: {error}\n".encode()
        answer["code"] = code
        answer["stdout"] = base64.b64encode(out[:MAX_OUTPUT_BYTES]).decode()
        answer["stderr"] = base64.b64encode(err[:MAX_OUTPUT_BYTES]).decode()
        self._send(answer)

    def _send(self, message: dict[str, Any]) -> None:
        with self._writing:
            self._answers.write(json.dumps(message).encode() + b"\n")
            self._answers.flush()


def run(
    argv: list[str], stdin: bytes, timeout_s: float, env: dict[str, str]
) -> tuple[int | None, bytes, bytes]:
    """(exit code, stdout, stderr). What goes on after its parent, and holds the pipes, is waited
    for too: who starts such a thing gives it other descriptors.
    """
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **env},
        cwd="/root",
        start_new_session=True,
    )
    try:
        out, err = process.communicate(stdin, timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        return None, out, err
    return process.returncode, out, err


def main() -> None:
    while not os.path.exists(PORT):  # udev makes it
        time.sleep(0.1)
    port = os.open(PORT, os.O_RDWR | os.O_CLOEXEC)
    Agent(os.fdopen(port, "rb"), os.fdopen(os.dup(port), "wb")).serve()


if __name__ == "__main__":
    main()
