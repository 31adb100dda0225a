"""A connection that is held in a machine while something is done to the manager there.

    python3 stream.py DIR HOST:PORT      until DIR/stop exists; then DIR/report holds what it was

A program of its own with nothing but the standard library. Numbered lines go to a server that sends
back what it gets; the next one goes when the last one has come back. The report is one JSON object:
lines, longest_s (a line there and back), problem ("" when no line was lost or changed).
"""

import json
import pathlib
import socket
import sys
import time

CONNECT_S = 120
ANSWER_S = 120
PAUSE_S = 0.05


def main():
    directory = pathlib.Path(sys.argv[1])
    host, _, port = sys.argv[2].rpartition(":")
    directory.mkdir(exist_ok=True)
    told = {"lines": 0, "longest_s": 0.0, "problem": ""}
    try:
        hold(directory, connect(host, int(port)), told)
    except OSError as error:
        told["problem"] = f"{type(error).__name__}: {error}"
    (directory / "report.part").write_text(json.dumps(told))
    (directory / "report.part").rename(directory / "report")


def connect(host, port):
    until = time.monotonic() + CONNECT_S
    while True:
        try:
            connection = socket.create_connection((host, port), 5)
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(PAUSE_S)
            continue
        connection.settimeout(ANSWER_S)
        return connection


def hold(directory, connection, told):
    back = connection.makefile("rb")
    while not (directory / "stop").exists():
        line = b"%d\n" % told["lines"]
        begun = time.monotonic()
        connection.sendall(line)
        answer = back.readline()
        if answer != line:
            told["problem"] = f"line {told['lines']} came back as {answer!r}"
            return
        told["longest_s"] = max(told["longest_s"], time.monotonic() - begun)
        told["lines"] += 1
        if told["lines"] == 1:
            (directory / "begun").touch()
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    main()
