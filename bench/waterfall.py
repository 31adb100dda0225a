"""Where the time of one piece of work goes: processor time by process, the kernel's share of it.

Works are done in batches with rest between them, so that what a process does after it has answered
(the next spare shim, what is removed behind one's back) counts with the work that caused it.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from accounting import KERNEL, PARTS, Account, Snapshot, account, settled
from exits import Exits
from images import KINDS, TMPFS, make_layout, registry
from measure import Row, run, seconds
from peers import Lighter

PROCESSOR, IN_KERNEL, WAITED, ALIVE = "processor", "kernel", "waited", "alive"
ALL, WALL = "all of it", "from start to end, by the clock"
ENDING = "ends of processes, after their last word"
PULLED = "gzip-8"
_NOTHING_NS = 10_000

_names = count(1)


@dataclass(frozen=True)
class Effort:
    """Batches, works in each, containers that are adopted, whether an image is pulled."""

    batches: int
    works: int
    adopted: int
    pulls: bool


FULL = Effort(batches=5, works=20, adopted=20, pulls=True)
QUICK = Effort(batches=2, works=5, adopted=5, pulls=False)


@dataclass
class Work:
    """Something done `times` in a batch; `prepare` and `after` are not counted."""

    name: str
    times: int
    do: Callable[[], object]
    prepare: Callable[[], object] = lambda: None
    after: Callable[[], object] = lambda: None
    ends_are_heard: bool = True  # every process that ends has a parent that lives on


class Measured:
    """What batches of one work took in all."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.account = Account()
        self.batches: list[Account] = []
        self.wall_s: list[float] = []

    def add(self, batch: Account, wall_s: list[float]) -> None:
        self.account.add(batch)
        self.batches.append(batch)
        self.wall_s += wall_s

    def rows(self) -> Iterator[Row]:
        """The clock's time first, then the parts in the order of the work, then their sum."""
        name, times = self.work.name, self.work.times
        yield Row(name, "ms", {ALIVE: [taken * 1000 for taken in self.wall_s]}, part=WALL)
        total = Row(name, "ms", part=ALL)
        whole_ms = [0.0] * len(self.batches)
        waited_ms = [0.0] * len(self.batches)
        kernel_ms = 0.0
        for part in PARTS:
            if part not in self.account.parts or self.account.parts[part].cpu_ns < _NOTHING_NS:
                continue
            row = Row(name, "ms", part=part)
            for index, batch in enumerate(self.batches):
                taken = batch.parts.get(part)
                spent = taken.cpu_ns / times / 1e6 if taken else 0.0
                row.add(PROCESSOR, spent)
                whole_ms[index] += spent
                waited = taken.waited_ns / times / 1e6 if taken else 0.0
                row.add(WAITED, waited)
                waited_ms[index] += waited
            share = 1.0 if part == KERNEL else self.account.parts[part].kernel_share
            all_ms = self.account.parts[part].cpu_ns / len(self.batches) / times / 1e6
            row.add(IN_KERNEL, all_ms * share)
            kernel_ms += all_ms * share
            for life_us in self.account.lives_us.get(part, []):
                row.add(ALIVE, life_us / 1000)
            yield row
        if self.work.ends_are_heard:
            ending_ms = self.account.ending_ns / len(self.batches) / times / 1e6
            yield Row(name, "ms", {PROCESSOR: [ending_ms], IN_KERNEL: [ending_ms]}, part=ENDING)
            whole_ms = [spent + ending_ms for spent in whole_ms]
            kernel_ms += ending_ms
        total.samples = {PROCESSOR: whole_ms, IN_KERNEL: [kernel_ms], WAITED: waited_ms}
        yield total


def waterfall_rows(lighter: Lighter, effort: Effort) -> Iterator[Row]:
    """Those of each work as soon as it is measured; `lighter` ends with one more container."""
    with Exits() as exits:
        target = _started(lighter)
        for work in (
            _run(lighter, effort),
            _exec(lighter, target, effort),
            _delete(lighter, effort),
        ):
            yield from _measured(lighter, exits, work, effort.batches)
        others = [_started(lighter) for _ in range(effort.adopted - 1)]
        yield from _measured(lighter, exits, _adopt(lighter, effort), effort.batches)
        lighter.remove([target, *others])
        if effort.pulls:
            with ExitStack() as stack:
                base = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=TMPFS)))
                layout = make_layout(base / "layout", *KINDS[PULLED])
                host = stack.enter_context(registry(base / "registry"))
                reference = f"{host}/{PULLED}:1"
                run(
                    [
                        "skopeo",
                        "copy",
                        "-q",
                        "--dest-tls-verify=false",
                        f"oci:{layout}:1",
                        f"docker://{reference}",
                    ]
                )
                # With its root in a tmpfs, as the rows of images are measured.
                puller = stack.enter_context(Lighter(TMPFS))
                assert isinstance(puller, Lighter)
                yield from _measured(puller, exits, _pull(puller, reference), effort.batches)


def _measured(lighter: Lighter, exits: Exits, work: Work, batches: int) -> Iterator[Row]:
    measured = Measured(work)
    for batch in range(batches + 1):
        work.prepare()
        before = _rest(lighter)
        exits.take()
        wall_s = [seconds(work.do) for _ in range(work.times)]
        after = _rest(lighter)
        if batch:  # the first one warms up
            measured.add(account(before, after, exits.take()), wall_s)
        work.after()
    return measured.rows()


def _rest(lighter: Lighter) -> Snapshot:
    assert lighter.manager is not None
    return settled(lighter.manager.pid, lighter.instance)


def _name() -> str:
    return f"w{next(_names)}"


def _started(lighter: Lighter) -> str:
    name = _name()
    run(lighter.detach_argv(name))
    return name


def _run(lighter: Lighter, effort: Effort) -> Work:
    return Work(
        "`run --rm IMAGE true`",
        effort.works,
        lambda: run(lighter.run_argv(_name(), "true")),
    )


def _exec(lighter: Lighter, target: str, effort: Effort) -> Work:
    return Work("`exec … true`", effort.works, lambda: run(lighter.exec_argv(target, _name())))


def _delete(lighter: Lighter, effort: Effort) -> Work:
    running: list[str] = []
    return Work(
        "`containers delete --force` of a running container",
        effort.works,
        lambda: run(lighter.client("containers", "delete", "--force", running.pop())),
        prepare=lambda: running.extend(_started(lighter) for _ in range(effort.works)),
    )


def _adopt(lighter: Lighter, effort: Effort) -> Work:
    return Work(
        f"`kill -9` of the manager until {effort.adopted} shims are connected",
        1,
        lambda: lighter.restart(effort.adopted),
        ends_are_heard=False,
    )


def _pull(lighter: Lighter, reference: str) -> Work:
    return Work(
        f"pull of 450 MB, {PULLED}",
        1,
        lambda: run(lighter.client("images", "pull", "--plain-http", reference)),
        after=lambda: run(lighter.client("images", "rm", "--sync", reference)),
    )
