"""The file of live facts: read for each keepalive, told to masters that take them."""

import asyncio
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.agent.network import TTL, Master, Network, gaps, one, running
from tests.support.simloop import virtual

from kontrol.agent.live import LiveFile
from kontrol.ensemble.live import LIVE_DEPTH, MAX_LIVE
from kontrol.ensemble.pod import Keepalive

KEEP = 5.0


def takes(_: Keepalive) -> object:
    """The answer of a master that takes live facts."""
    return {"seq": 0, "ttl": TTL, "leader": "m1", "live": True}


def older(_: Keepalive) -> object:
    """The answer of one that would take them for a part of the record."""
    return {"seq": 0, "ttl": TTL, "leader": "m1"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "live.json"


def test_each_keepalive_has_what_the_file_says_then(path: Path) -> None:
    @virtual
    async def check() -> None:
        master = Master(takes)
        offset = iter(range(1000))

        def answer(record: Keepalive) -> object:
            path.write_text(json.dumps({"offset": next(offset)}))
            return takes(record)

        master.answer = answer
        async with running(one(master).agent("10.0.0.1", live=path)):
            await asyncio.sleep(20 * TTL)
        facts = [record.live for record in master.records]
        assert facts[0] is None, "until the master has said that it takes them"
        assert facts[1:50] == [f'{{"offset":{i}}}' for i in range(49)]
        assert {(record.n, record.payload) for record in master.records} == {(0, "")}
        times = gaps(master.times)
        assert times[0] <= TTL / 12 + 0.01, "the second keepalive comes soon"
        assert max(times) <= TTL / 3 + 0.01
        assert min(times[1:]) > 0.8 * TTL / 3 - 0.01, "and no other for the facts"

    check()


@pytest.mark.parametrize("answer", [older, lambda _: None, lambda _: {"live": "yes"}])
def test_a_master_that_does_not_say_so_gets_none(
    path: Path, answer: Callable[[Keepalive], object]
) -> None:
    path.write_text("{}")

    @virtual
    async def check() -> None:
        master = Master(answer)
        async with running(one(master).agent("10.0.0.1", live=path)):
            await asyncio.sleep(10 * TTL)
        assert {record.live for record in master.records} == {None}
        assert min(gaps(master.times)) > 0.8 * TTL / 3 - 0.01

    check()


def test_an_older_master_after_a_newer_gets_none(path: Path) -> None:
    path.write_text("{}")

    @virtual
    async def check() -> None:
        new, old = Master(takes), Master(older)
        network = Network({"tier": ["10.0.0.1", "10.0.0.2"]}, {"10.0.0.1": new, "10.0.0.2": old})
        async with running(network.agent("tier", live=path)):
            for _ in range(12):
                await asyncio.sleep(2 * TTL)
                new.connectable, old.connectable = not new.connectable, new.connectable
                for master in (new, old):
                    master.answer = (
                        (takes if master is new else older)
                        if master.connectable
                        else (lambda _: (_ for _ in ()).throw(TimeoutError()))
                    )
        assert "{}" in {record.live for record in new.records}
        assert len(old.records) > 10
        assert {record.live for record in old.records} == {None}

    check()


def test_an_agent_without_the_setting_sends_none() -> None:
    @virtual
    async def check() -> None:
        master = Master(takes)
        async with running(one(master).agent("10.0.0.1")):
            await asyncio.sleep(10 * TTL)
        assert {record.live for record in master.records} == {None}
        assert min(gaps(master.times)) > 0.8 * TTL / 3 - 0.01

    check()


def test_the_deregistration_has_none(path: Path) -> None:
    path.write_text("{}")

    @virtual
    async def check() -> None:
        master = Master(takes)
        agent = one(master).agent("10.0.0.1", live=path)
        task = asyncio.create_task(agent.run())
        await asyncio.sleep(TTL)
        await agent.leave()
        await task
        last = master.records[-1]
        assert (last.down, last.live) == (True, None)

    check()


BAD: list[tuple[bytes, str]] = [
    (b"", "empty"),
    (b'{"offset": 1', "line 1"),
    (b"READY", "line 1"),
    (b"NaN", "NaN"),
    (b"\xff", "UTF-8"),
    (json.dumps("x" * MAX_LIVE).encode(), f"at most {MAX_LIVE}"),
    (b"[" * (LIVE_DEPTH + 1) + b"]" * (LIVE_DEPTH + 1), "deeper"),
    (b" " * 10_000_000, "over"),
]


@pytest.mark.parametrize(("content", "complaint"), BAD)
def test_what_is_no_facts_is_not_reported_and_logged_once(
    path: Path, content: bytes, complaint: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    file = LiveFile(path)
    path.write_bytes(content)
    assert [file.read(at, keep=KEEP) for at in (0.0, 1.0, 9.0)] == ["null"] * 3
    assert complaint in (file.error or "")
    assert len(caplog.records) == 1
    path.write_text(" 7 \n")
    assert file.read(10.0, keep=KEEP) == "7"
    assert file.error is None


@pytest.mark.parametrize("content", [*(content for content, _ in BAD), None])
def test_the_last_facts_stay_for_one_bad_read_and_no_longer(
    path: Path, content: bytes | None
) -> None:
    file = LiveFile(path)
    path.write_text('{"offset": 1}')
    assert file.read(0.0, keep=KEEP) == '{"offset":1}'
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert file.read(KEEP, keep=KEEP) == '{"offset":1}', "it may be written just now"
    assert file.read(KEEP + 0.1, keep=KEEP) == "null"


def test_a_fifo_a_folder_and_a_link_to_nothing_do_not_block(path: Path) -> None:
    file = LiveFile(path)
    os.mkfifo(path)
    assert file.read(0.0, keep=KEEP) == "null"
    assert file.error == "not a regular file"
    path.unlink()
    path.mkdir()
    assert file.read(1.0, keep=KEEP) == "null"
    path.rmdir()
    path.symlink_to(path.with_name("nowhere"))
    assert file.read(2.0, keep=KEEP) == "null"
    assert file.error == "there is no such file"
