"""The outbox of a client: order, bounds, and a client that goes away while it is flushed."""

import asyncio

import pytest

from lighter.daemon.rpc import client as module
from lighter.daemon.rpc.client import Outbox


def test_messages_leave_in_order_and_what_is_not_taken_stays() -> None:
    box, taken = Outbox(), list[bytes]()
    for number in b"abc":
        assert box.add([bytes((number,))])

    def send(frames: list[bytes]) -> bool:
        if len(taken) == 2:
            return False
        taken.extend(frames)
        return True

    box.flush(send)
    assert (taken, len(box)) == ([b"a", b"b"], 1)
    taken.clear()
    box.flush(send)
    assert (taken, len(box)) == ([b"c"], 0)


def test_it_is_bounded_in_messages_and_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MESSAGES", 3)
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    box = Outbox()
    assert [box.add([b"x"]) for _ in range(4)] == [True, True, True, False]
    box.flush(lambda _frames: True)
    assert [box.add([b"x" * 5, b"y"]), box.add([b"z" * 5])] == [True, False]
    box.flush(lambda _frames: True)
    assert box.add([b"x" * 10])


def test_who_waits_goes_on_when_it_is_empty_or_closed() -> None:
    async def wait() -> None:
        box = Outbox()
        await box.emptied()
        for end in (lambda: box.flush(lambda _frames: True), box.close):
            box.add([b"x"])
            waiting = asyncio.ensure_future(box.emptied())
            await asyncio.sleep(0)
            assert not waiting.done()
            end()
            await asyncio.wait_for(waiting, 20)

    asyncio.run(wait())


def test_a_client_found_gone_while_it_is_flushed_is_no_error() -> None:
    box = Outbox()
    box.add([b"a"])
    box.add([b"b"])

    def gone(_frames: list[bytes]) -> bool:
        box.close()
        return True

    box.flush(gone)
    assert len(box) == 0
