"""Traffic through containers while their manager is restarted, upgraded or killed.

    python3 traffic.py run DIR --image REF [--idle N] [--rate-mb N]     until DIR/stop exists
    python3 traffic.py mark DIR NAME                                    something begins now

A program of its own with nothing but the standard library, run in the machine whose manager is
under test, so that it does not matter how that machine is reached. It uses `ctl` as users do:

    echo      a TCP stream to a container, open all the time       no reset, every byte comes back
    log       a container writes to its unlimited log              the log is what was written
    pipe      a container writes to an attached reader             nothing is missing or doubled
    exec      a process in a container, attached, open all the time  every line, and its exit code
    exits     short containers that exit with random codes         each code is exact
    idle      N containers that do nothing                         the same processes at the end
    api       `ctl tasks ls`, again and again                      how long none succeeded

DIR/ready appears when all runs. At the end DIR/report.json holds what was measured, and `problems`,
which must be empty; the exit status is 0 when it is. All its containers are removed.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

PORT = 7077
ECHO_RATE = 256 * 1024  # bytes per second
ECHO_CHUNK = 16 * 1024
BLOCK_BYTES = 1 << 20
CALL_S = 60
LIVES = 3  # short containers at a time
START_S = 30
END_S = 120

# The counter makes a missing or doubled block visible, the random bytes a shifted one.
WRITER = (
    "i=0; while [ ! -e /traffic/stop-writers ]; do "
    'printf "%08d\\n" $i; cat /traffic/block; i=$((i+1)); usleep {pause_us}; done'
)


class Ctl:
    """`ctl` as a user runs it."""

    def __init__(self, program):
        self.program = program

    def argv(self, *args):
        return [self.program, *args]

    def try_(self, *args, timeout=CALL_S):
        """(exit status, standard output, standard error)."""
        try:
            done = subprocess.run(
                self.argv(*args), stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            return -1, b"", b"no answer in %d s" % timeout
        return done.returncode, done.stdout, done.stderr.decode(errors="replace").strip()

    def do(self, *args, timeout=CALL_S):
        code, out, err = self.try_(*args, timeout=timeout)
        if code:
            raise Failure(f"ctl {' '.join(args)}: exit status {code}: {err}")
        return out


class Failure(Exception):
    pass


class Part(threading.Thread):
    """One kind of traffic: `begin` sets it up, the thread runs until `stop`, `end` judges.

    `problems` says what must not have happened, `facts` what was measured.
    """

    def __init__(self, ctl, options):
        super().__init__(name=type(self).__name__.lower(), daemon=True)
        self.ctl, self.options = ctl, options
        self.over = threading.Event()
        self.problems, self.facts = [], {}

    def begin(self):
        pass

    def work(self):
        pass

    def end(self):
        pass

    def clean(self):
        pass

    def run(self):
        try:
            self.work()
        except Exception as error:
            self.problems.append(f"{type(error).__name__}: {error}")

    def stop(self):
        self.over.set()
        self.join(END_S)
        if self.is_alive():
            self.problems.append(f"does not end in {END_S} s")
            return
        try:
            self.end()
        except Exception as error:
            self.problems.append(f"{type(error).__name__}: {error}")


class Echo(Part):
    """A TCP connection that is never closed, and whose every byte is compared."""

    def begin(self):
        server = ("nc", "-ll", "-p", str(PORT), "-e", "cat")
        self.ctl.do("run", "-d", "--net-host", self.options.image, "traffic-echo", *server)
        until = time.monotonic() + START_S
        while True:
            try:
                self.connection = socket.create_connection(("127.0.0.1", PORT), 5)
                return
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def work(self):
        self.connection.settimeout(30)
        chunk_no = 0
        begun = time.monotonic()
        longest = 0.0
        while not self.over.is_set():
            chunk = hashlib.sha256(b"%d" % chunk_no).digest() * (ECHO_CHUNK // 32)
            sent_at = time.monotonic()
            self.connection.sendall(chunk)
            if self.receive(len(chunk)) != chunk:
                self.problems.append(f"chunk {chunk_no} came back different")
                return
            longest = max(longest, time.monotonic() - sent_at)
            chunk_no += 1
            ahead = chunk_no * ECHO_CHUNK / ECHO_RATE - (time.monotonic() - begun)
            self.over.wait(max(0.0, ahead))
        self.facts = {"bytes": chunk_no * ECHO_CHUNK, "longest_round_trip_s": round(longest, 3)}

    def receive(self, size):
        parts = []
        while size:
            part = self.connection.recv(size)
            if not part:
                raise Failure("the container has closed the connection")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def clean(self):
        self.connection.close()
        self.ctl.try_("rm", "-f", "traffic-echo")


class Expected:
    """Compares a stream with what a writer writes, as it comes."""

    def __init__(self, block):
        self.block = block
        self.count = 0
        self.rest = b""
        self.bytes = 0

    def feed(self, data):
        """Raises Failure at the first block that is not the one expected."""
        self.bytes += len(data)
        self.rest += data
        size = 9 + len(self.block)
        while len(self.rest) >= size:
            if self.rest[:size] != b"%08d\n" % self.count + self.block:
                raise Failure(f"block {self.count} is not what was written")
            self.rest = self.rest[size:]
            self.count += 1

    def finish(self):
        if self.rest:
            raise Failure(f"{len(self.rest)} bytes follow block {self.count}")
        if not self.count:
            raise Failure("nothing was written")


class Writer(Part):
    def writer(self, *options):
        pause_us = int(1e6 * BLOCK_BYTES / (self.options.rate_mb * 1e6))
        mount = f"type=bind,src={self.options.dir},dst=/traffic,options=rbind:ro"
        command = ("sh", "-c", WRITER.format(pause_us=pause_us))
        return ("--mount", mount, *options, self.options.image, self.container, *command)

    def block(self):
        with open(os.path.join(self.options.dir, "block"), "rb") as file:
            return file.read()

    def clean(self):
        self.ctl.try_("rm", "-f", self.container)


class Log(Writer):
    """What a container has written to its log is read back whole."""

    container = "traffic-log"

    def begin(self):
        self.begun = time.monotonic()
        self.ctl.do("run", "-d", *self.writer("--log-max-size", "0"))

    def work(self):
        self.over.wait()

    def end(self):
        ended = self.ctl.do("tasks", "wait", self.container)
        if int(ended) != 0:
            self.problems.append(f"the writer ended with {ended!r}")
        took_s = time.monotonic() - self.begun
        expected = Expected(self.block())
        with subprocess.Popen(
            self.ctl.argv("logs", self.container), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        ) as reader:
            while data := reader.stdout.read(1 << 20):
                expected.feed(data)
        if reader.returncode:
            self.problems.append(f"ctl logs: exit status {reader.returncode}")
        expected.finish()
        rate = expected.bytes / took_s / 1e6
        self.facts = {"bytes": expected.bytes, "mb_per_s": round(rate, 1)}


class Pipe(Writer):
    """An attached `ctl run` whose output is a pipe; the reader never pauses."""

    container = "traffic-pipe"

    def begin(self):
        self.begun = time.monotonic()
        self.process = subprocess.Popen(
            self.ctl.argv("run", "--rm", *self.writer("--log-driver", "none")),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def work(self):
        expected = Expected(self.block())
        while data := self.process.stdout.read1(1 << 20):
            expected.feed(data)
        code = self.process.wait(END_S)
        if code:
            error = self.process.stderr.read().decode(errors="replace")
            raise Failure(f"the attached run ended with {code}: {error}")
        expected.finish()
        rate = expected.bytes / (time.monotonic() - self.begun) / 1e6
        self.facts = {"bytes": expected.bytes, "mb_per_s": round(rate, 1)}


class Exec(Part):
    """`cat` in a container, attached; a line at a time there and back."""

    code = 37

    def begin(self):
        command = ("sh", "-c", f"cat; exit {self.code}")
        self.process = subprocess.Popen(
            self.ctl.argv("tasks", "exec", "--exec-id", "session", "traffic-echo", *command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def work(self):
        lines = 0
        while not self.over.is_set():
            line = b"line %d\n" % lines
            self.process.stdin.write(line)
            self.process.stdin.flush()
            if (back := self.process.stdout.readline()) != line:
                raise Failure(f"{line!r} came back as {back!r}: {self.error()}")
            lines += 1
            self.over.wait(0.05)
        self.process.stdin.close()
        if rest := self.process.stdout.read():
            raise Failure(f"{rest!r} came at the end")
        code = self.process.wait(END_S)
        if code != self.code:
            raise Failure(f"the exec ended with {code}, not {self.code}: {self.error()}")
        self.facts = {"lines": lines, "exit_code": code}

    def error(self):
        if self.process.poll() is None:
            return "it runs"
        return self.process.stderr.read().decode(errors="replace").strip()

    def clean(self):
        self.process.kill()


class Exits(Part):
    """Containers that live up to 3 s, so that some end while no manager is there."""

    def work(self):
        self.ended = self.refused = 0
        self.lock = threading.Lock()
        lives = [threading.Thread(target=self.live, args=(n,)) for n in range(LIVES)]
        for life in lives:
            life.start()
        for life in lives:
            life.join()
        self.facts = {"exits": self.ended, "starts_refused": self.refused}

    def live(self, lane):
        dice = random.Random(self.options.seed * LIVES + lane)
        number = 0
        while not self.over.is_set():
            name = f"traffic-exit-{lane}-{number}"
            number += 1
            try:
                self.one(name, dice.randrange(256), dice.randrange(3_000_000))
            except Failure as failure:
                self.problems.append(str(failure))

    def one(self, name, code, life_us):
        command = ("sh", "-c", f"usleep {life_us}; exit {code}")
        status, _out, err = self.ctl.try_("run", "-d", self.options.image, name, *command)
        if status:
            # A manager that goes away may refuse; what it may not do is to lose what it took on.
            with self.lock:
                self.refused += 1
            if not any(word in err for word in ("manager", "restarted", "ended meanwhile")):
                raise Failure(f"run {name}: {err}")
            self.remove(name)
            return
        # Its code is asked for when it has ended long since, or is waited for: both must be exact.
        if life_us % 2:
            time.sleep(life_us / 1e6)
        for _attempt in range(3):
            status, out, err = self.ctl.try_("tasks", "wait", name)
            if status == 0:
                break
        else:
            raise Failure(f"wait {name}: {err}")
        if int(out) != code:
            raise Failure(f"{name} ended with {int(out)}, not {code}")
        with self.lock:
            self.ended += 1
        self.remove(name)

    def remove(self, name):
        """A manager that goes away meanwhile tells of it, and then it is to be said again."""
        for _attempt in range(3):
            status, _out, err = self.ctl.try_("rm", "-f", name)
            if status == 0 or "there is none" in err:
                return
        raise Failure(f"rm {name}: {err}")


class Idle(Part):
    """Containers that must be the same processes at the end."""

    def begin(self):
        with ThreadPoolExecutor(4) as starters:
            list(starters.map(self.start_one, range(self.options.idle)))
        self.before = self.pids()

    def start_one(self, number):
        name = f"traffic-idle-{number}"
        command = ("sh", "-c", "trap exit TERM; while :; do sleep 1000 & wait $!; done")
        self.ctl.do("run", "-d", self.options.image, name, *command)

    def pids(self):
        found = tasks(self.ctl)
        return {
            n: (t["pid"], t["status"]) for n, t in found.items() if n.startswith("traffic-idle")
        }

    def end(self):
        until = time.monotonic() + 30
        while (after := self.pids()) != self.before and time.monotonic() < until:
            time.sleep(0.2)
        if after != self.before:
            changed = sorted(n for n in self.before if after.get(n) != self.before[n])
            shown = [(n, self.before[n], after.get(n)) for n in changed[:5]]
            self.problems.append(f"{len(changed)} have changed: {shown}")
        if len(self.before) != self.options.idle:
            self.problems.append(f"{len(self.before)} were there, not {self.options.idle}")
        self.facts = {"containers": len(self.before)}

    def clean(self):
        names = [f"traffic-idle-{number}" for number in range(self.options.idle)]
        with ThreadPoolExecutor(4) as removers:
            list(removers.map(lambda name: self.ctl.try_("rm", "-f", name), names))


class Api(Part):
    """How long there was no successful `ctl tasks ls`, from the end of one to the end of the next.

    So an ordinary call's own time is in it, as it is for a user.
    """

    def begin(self):
        self.ends = []

    def work(self):
        self.failed = 0
        while not self.over.is_set():
            status, _out, err = self.ctl.try_("tasks", "ls")
            if status == 0:
                self.ends.append(time.monotonic())
            else:
                self.failed += 1
                self.facts.setdefault("errors", []).append(err)

    def end(self):
        gaps = list(zip(self.ends, self.ends[1:]))  # noqa: B905 (Python 3.9)
        after = {}
        set_at = marks(self.options.dir)
        for mark, following in zip(set_at, [*set_at[1:], {"at": float("inf")}]):  # noqa: B905
            # A gap begins with the last success, which is before the mark that it belongs to.
            here = [b - a for a, b in gaps if mark["at"] <= b < following["at"]]
            if here:
                after[mark["name"]] = round(max(here), 3)
            else:
                self.problems.append(f"no call has succeeded after {mark['name']}")
        ordinary = sorted(b - a for a, b in gaps)
        self.facts.update(
            calls=len(self.ends),
            failed=self.failed,
            ordinary_s=round(ordinary[len(ordinary) // 2], 3) if ordinary else None,
            longest_gap_s=round(ordinary[-1], 3) if ordinary else None,
            longest_gap_after_s=after,
        )


def tasks(ctl):
    listed = json.loads(ctl.do("tasks", "ls", "--format", "json"))
    return {task["id"]: task for task in listed}


def marks(directory):
    try:
        with open(os.path.join(directory, "marks"), encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    except FileNotFoundError:
        return []


def write_whole(path, text):
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(text)
    os.rename(path + ".new", path)


def run(options):
    os.makedirs(options.dir, exist_ok=True)
    with open(os.path.join(options.dir, "block"), "wb") as file:
        file.write(random.Random(options.seed).randbytes(BLOCK_BYTES))
    ctl = Ctl(options.ctl)
    parts = [kind(ctl, options) for kind in (Idle, Echo, Exec, Log, Pipe, Exits, Api)]
    begun = []
    problems = []
    try:
        for part in parts:
            begun.append(part)
            part.begin()
            part.start()
        write_whole(os.path.join(options.dir, "ready"), "")
        until = time.monotonic() + options.at_most
        while not os.path.exists(os.path.join(options.dir, "stop")):
            if time.monotonic() > until:
                raise Failure(f"nobody has ended this in {options.at_most} s")
            time.sleep(0.05)
    except Exception as error:
        problems.append(f"{type(error).__name__}: {error}")
    with open(os.path.join(options.dir, "stop-writers"), "w", encoding="utf-8"):
        pass
    for part in begun:
        if part.ident is not None:
            part.stop()
    report = {part.name: part.facts for part in parts}
    problems += [f"{part.name}: {problem}" for part in parts for problem in part.problems]
    for part in reversed(begun):
        with contextlib.suppress(Exception):
            part.clean()
    left = sorted(name for name in tasks(ctl) if name.startswith("traffic-"))
    if left:
        problems.append(f"left: {left}")
    report["problems"] = problems
    write_whole(os.path.join(options.dir, "report.json"), json.dumps(report, indent=1))
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    return 1 if problems else 0


def mark(options):
    with open(os.path.join(options.dir, "marks"), "a", encoding="utf-8") as file:
        file.write(json.dumps({"name": options.name, "at": time.monotonic()}) + "\n")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(required=True)
    runs = verbs.add_parser("run")
    runs.add_argument("dir")
    runs.add_argument("--image", required=True)
    runs.add_argument("--idle", type=int, default=20)
    runs.add_argument("--rate-mb", type=float, default=20.0, help="of each of the two writers")
    runs.add_argument("--seed", type=int, default=1)
    runs.add_argument("--ctl", default="ctl")
    runs.add_argument("--at-most", type=float, default=900, help="seconds")
    runs.set_defaults(act=run)
    marked = verbs.add_parser("mark")
    marked.add_argument("dir")
    marked.add_argument("name")
    marked.set_defaults(act=mark)
    options = parser.parse_args()
    sys.exit(options.act(options))


if __name__ == "__main__":
    main()
