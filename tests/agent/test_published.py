"""What is published, in a pod's file: whole or not at all, and never an earlier version."""

import asyncio
import json
import os
import sys
import time
from binascii import crc32
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.agent.network import IDENTITY, named
from tests.support.simloop import virtual

from kontrol.agent.agent import Agent, AgentSettings
from kontrol.agent.health import METRICS, checks
from kontrol.agent.hooks import HookRunner, HookStatus
from kontrol.agent.published import PublishedFile
from kontrol.ensemble.canonical import canonical
from kontrol.ensemble.tiers import parse_tiers
from kontrol.metrics import render
from kontrol.process.guard import Guard
from kontrol.rpc.client import Client
from kontrol.rpc.errors import CallTimeout, LostRemote, ProtocolError, RemoteError
from kontrol.rpc.server import Call, Server

DEADLINE = 40.0
NEVER = LostRemote("the connection was closed")


def text(version: int, **documents: Any) -> str:  # noqa: ANN401 - any JSON
    return json.dumps({"version": version, "documents": documents})


class Master:
    """Answers as a list says, each answer or error once; then the connection is lost."""

    def __init__(self, *answers: object) -> None:
        self.answers: Iterator[object] = iter(answers)
        self.asked: list[tuple[float, object, dict[str, Any]]] = []

    async def call(self, method: str, *args: object, timeout: float) -> object:
        assert method == "published"
        have, about = args
        assert isinstance(about, str)
        self.asked.append((asyncio.get_running_loop().time(), have, json.loads(about)))
        await asyncio.sleep(0.001)
        answer = next(self.answers, NEVER)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def had(self) -> list[object]:
        return [have for _, have, _ in self.asked]


def keep(path: Path, *tiers: str) -> PublishedFile:
    return PublishedFile(path, tiers or ("t",), pod="abc", uniform=lambda: 0.5)


async def follow(file: PublishedFile, master: Master, tier: str = "t") -> None:
    with pytest.raises(LostRemote):
        await file.follow(tier, master, pause=8.0)


def names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


def error_of(file: PublishedFile) -> str | None:
    return file.status.error


def hook_of(agent: Agent) -> HookStatus:
    status = agent.status.published
    assert status is not None
    assert status.hook is not None, "it has run"
    return status.hook


def content(path: Path) -> Any:  # noqa: ANN401 - JSON
    return json.loads(path.read_bytes())


def test_each_later_version_replaces_the_file_and_no_earlier_one_does(tmp_path: Path) -> None:
    @virtual
    async def test() -> None:
        path = tmp_path / "published.json"
        file = keep(path)
        assert file.status.version == 0
        master = Master(text(3, a=1), text(3, a="doubled"), text(2, a="late"), text(7, b=[2]))
        await follow(file, master)
        assert content(path) == {"version": 7, "documents": {"b": [2]}}
        assert master.had == [0, 3, 3, 3, 7]
        assert master.asked[0][2] == {"pod": "abc"}
        sums = [crc32(it.encode()) for it in (text(3, a=1), text(7, b=[2]))]
        assert [master.asked[i][2] for i in (1, 4)] == [{"pod": "abc", "sum": it} for it in sums]
        assert names(tmp_path) == ["published.json"]
        status = file.status
        assert (status.version, status.tier, status.documents, status.error) == (7, "t", 1, None)

    test()


def test_the_next_process_goes_on_from_the_file_and_replaces_what_is_damaged(
    tmp_path: Path,
) -> None:
    @virtual
    async def test() -> None:
        path = tmp_path / "published.json"
        path.write_text(text(7, a=1))
        master = Master(text(6, a="a master that is behind"), text(8, a=2))
        await follow(keep(path), master)
        assert master.had == [7, 7, 8]
        assert master.asked[0][2]["sum"] == crc32(text(7, a=1).encode())
        assert content(path)["version"] == 8
        for damaged in (
            "",
            "{",
            "[]",
            text(0),
            text(-1),
            text(2**52),
            '{"version":true,"documents":{}}',
        ):
            path.write_text(damaged)
            master = Master(text(1, a=1))
            await follow(keep(path), master)
            assert master.had == [0, 1]

    test()


JUNK = [
    *(7, [], {}, b"\xff\xfe", "", "{", "NaN", "[1]", '{"version":1}', '{"documents":{}}'),
    *(text(0), text(-5), text(2**60), text(2**52), '{"version":1,"documents":[]}', "[" * 5000),
    *('{"version":1.0,"documents":{}}', '{"version":true,"documents":{}}', "x" * (10 << 20)),
    *('{"version":9,"version":8,"documents":{}}', text(9, a="x" * (2 << 20))),
    *(ProtocolError("nonsense"), RemoteError("Busy", "x" * 9999), RemoteError("Forbidden", "no")),
]


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: repr(junk)[:20])
def test_junk_of_a_master_changes_nothing_and_is_asked_for_again_later(
    tmp_path: Path, junk: object
) -> None:
    @virtual
    async def test() -> None:
        path = tmp_path / "published.json"
        file = keep(path)
        master = Master(text(1, a=1), junk, junk, junk, text(2, a=2))
        await follow(file, master)
        assert content(path) == {"version": 2, "documents": {"a": 2}}
        times = [at for at, _, _ in master.asked]
        assert times[4] - times[1] == pytest.approx(0.5 + 1 + 2, abs=0.1)
        assert file.status.error is None

    test()


def test_masters_that_have_no_room_or_do_not_know_it_are_asked_rarely(tmp_path: Path) -> None:
    @virtual
    async def test() -> None:
        master = Master(None, RemoteError("NameError", "?"), CallTimeout("?"), text(1, a=1))
        await follow(keep(tmp_path / "p"), master)
        times = [at for at, _, _ in master.asked]
        assert times[1] - times[0] == pytest.approx(8, abs=1)
        assert times[2] - times[1] == pytest.approx(600, abs=1)
        assert times[3] - times[2] < 1

    test()


@pytest.mark.parametrize("why", ["no folder", "a folder", "a FIFO", "full", "read-only"])
def test_a_file_that_cannot_be_written_stays_as_it_was_and_is_named_and_tried_again(
    tmp_path: Path, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @virtual
    async def test() -> None:
        folder = tmp_path / "folder"
        path = folder / "published.json"
        folder.mkdir()
        path.write_text(text(1, a=1))
        before = path.read_bytes()
        file = keep(path)
        match why:
            case "no folder":
                folder.rename(tmp_path / "away")
            case "a folder":
                path.unlink()
                path.mkdir()
            case "a FIFO":
                path.unlink()
                os.mkfifo(path)
            case "full":
                monkeypatch.setattr(os, "write", full)
            case _:
                (folder / ".published.json.new").mkdir()
        await follow(file, master := Master(text(2, a=2), text(2, a=2), text(3, a=3)))
        assert file.status.version == 1
        error = error_of(file)
        assert error is not None
        assert str(path) in error
        assert file.status.failures == 3
        assert "it is tried again" in caplog.text
        assert master.had == [1, 1, 1, 1]
        assert [about.get("error") for _, _, about in master.asked][1:] == [error] * 3
        times = [at for at, _, _ in master.asked]
        assert times[3] - times[0] == pytest.approx(0.5 + 1 + 2, abs=0.1)
        match why:
            case "no folder":
                (tmp_path / "away").rename(folder)
            case "a folder":
                path.rmdir()
                path.write_bytes(before)
            case "a FIFO":
                path.unlink()
                path.write_bytes(before)
            case "full":
                monkeypatch.undo()
            case _:
                (folder / ".published.json.new").rmdir()
        assert path.read_bytes() == before
        await follow(file, Master(text(3, a=3)))
        assert content(path)["version"] == 3
        assert error_of(file) is None
        assert len(list(folder.iterdir())) == 1

    test()


@pytest.mark.parametrize("how", [os.link, os.symlink])
def test_what_another_user_put_beside_the_file_is_not_written_to(
    tmp_path: Path, how: Callable[[Path, Path], None]
) -> None:
    @virtual
    async def test() -> None:
        precious = tmp_path / "precious"
        precious.write_text("all I have")
        folder = tmp_path / "folder"
        folder.mkdir()
        path = folder / "published.json"
        how(precious, folder / ".published.json.new")
        await follow(keep(path), Master(text(2, a=2)))
        assert content(path)["version"] == 2
        assert precious.read_text() == "all I have"
        assert path.stat().st_ino != precious.stat().st_ino

    test()


def test_a_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    @virtual
    async def test() -> None:
        path = tmp_path / "published.json"  # a link: what it names is judged, and this kept
        path.symlink_to("/dev/null")
        file = keep(path)
        await follow(file, Master(text(2, a=2)))
        assert file.status.version == 0
        assert "not a regular file" in (error_of(file) or "")
        assert path.is_symlink()
        assert names(tmp_path) == ["published.json"]

    test()


def full(descriptor: int, data: bytes) -> int:
    raise OSError(28, "No space left on device")


def test_of_several_tiers_the_first_listed_that_has_any_wins_for_good(tmp_path: Path) -> None:
    @virtual
    async def test() -> None:
        path = tmp_path / "published.json"
        file = keep(path, "one", "two", "three")
        await follow(file, Master(text(500, a=2)), "two")
        assert content(path) == {"version": 500, "documents": {"a": 2}, "tier": "two"}
        third = Master(text(900, a=3))
        waiting = asyncio.create_task(file.follow("three", third, pause=1))
        await asyncio.sleep(10)
        assert not third.asked
        await follow(file, first := Master(text(3, a=1)), "one")
        assert first.had == [0, 3]
        assert content(path) == {"version": 3, "documents": {"a": 1}, "tier": "one"}
        waiting.cancel()
        again = keep(path, "one", "two", "three")
        await follow(again, first := Master(text(2, a="late"), text(4, a=1)), "one")
        assert first.had == [3, 3, 4]
        assert first.asked[0][2]["sum"] == crc32(canonical({"version": 3, "documents": {"a": 1}}))
        # The list was changed: versions of another tier say nothing of these.
        other = keep(path, "two", "one")
        await follow(other, second := Master(text(1, a=2)), "two")
        assert second.had == [0, 1]
        assert content(path)["tier"] == "two"

    test()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(versions=st.lists(st.integers(-2, 12), max_size=12), restarts=st.sets(st.integers(0, 11)))
def test_whatever_comes_in_whatever_order_versions_in_the_file_only_rise(
    tmp_path_factory: pytest.TempPathFactory, versions: list[int], restarts: set[int]
) -> None:
    path = tmp_path_factory.mktemp("rise") / "published.json"

    @virtual
    async def test() -> None:
        file, highest = keep(path), 0
        for i, version in enumerate(versions):
            if i in restarts:
                file = keep(path)
            await follow(file, Master(text(version, a=i)))
            highest = max(highest, version)
            assert file.status.version == highest
            if highest:
                assert content(path)["version"] == highest

    test()


class Tier:
    """A real server that publishes."""

    def __init__(self) -> None:
        self.text: str | None = None
        self.has: dict[str, int] = {}  # by the connection
        self.port = 0
        self.news = asyncio.Condition()

    async def ping(self, call: Call, raw: str) -> object:
        return {"seq": 0, "ttl": 3.0, "leader": "m"}

    async def published(self, call: Call, have: int, about: str) -> object:
        self.has[call.peer] = have
        async with self.news:
            self.news.notify_all()
            await self.news.wait_for(
                lambda: self.text is not None and json.loads(self.text)["version"] > have
            )
        return self.text

    async def publish(self, version: int, **documents: Any) -> None:  # noqa: ANN401 - JSON
        self.text = text(version, **documents)
        async with self.news:
            self.news.notify_all()

    async def received(self, version: int) -> None:
        async with asyncio.timeout(DEADLINE), self.news:
            await self.news.wait_for(lambda: version in self.has.values())


async def test_an_agent_follows_over_its_connection_runs_the_hook_and_goes_to_another_master(
    tmp_path: Path,
) -> None:
    path, log = tmp_path / "published.json", tmp_path / "log"
    one, two = Tier(), Tier()
    script = (
        f'echo "$PUBLISHED_VERSION" >> {log}; sleep 60 & '  # what it leaves is killed
        'test "$PUBLISHED_VERSION" != 2 || exit 3'
    )
    async with Guard() as guard, asyncio.TaskGroup() as group:
        servers = [Server({"ping": tier.ping, "published": tier.published}) for tier in (one, two)]
        ports = [await server.bind("127.0.0.1", 0) for server in servers]
        serving = [group.create_task(server.serve()) for server in servers]
        hook = HookRunner(guard.run, environ=os.environ, secrets=(), uniform=lambda: 0.0)
        file = PublishedFile(
            path,
            ["t"],
            pod="abc",
            uniform=lambda: 0.5,
            hook=hook,
            command=("sh", "-c", script),
        )
        found = iter([[str(ports[0])]])

        async def resolve(host: str, port: int) -> list[str]:
            return next(found, [str(ports[1])])

        agent = Agent(
            AgentSettings(named(IDENTITY), parse_tiers("t", 8000), 3.0),
            connect=lambda host, _: Client("127.0.0.1", int(host)),
            resolve=resolve,
            published=file,
        )
        file._tiers = (str(parse_tiers("t", 8000)[0]),)
        running = group.create_task(agent.run())
        await one.publish(1, a=1)
        await one.received(1)
        assert content(path) == {"version": 1, "documents": {"a": 1}}
        await one.publish(2, a=2)
        await one.received(2)
        failing = await until(lambda: hook_of(agent).failures > 1)
        assert failing
        detail = checks(agent.status)[1]
        assert (detail["name"], detail["ok"]) == ("published", True)
        assert "KONTROL_ON_PUBLISHED failed: exit status 3" in str(detail["detail"])
        shown = render(METRICS, agent.status)
        assert 'kontrol_agent_published_version{tier="t:8000"} 2' in shown
        assert 'kontrol_agent_hook_failing{hook="published"} 1' in shown

        began = time.monotonic()
        await two.publish(3, a=3)
        serving[0].cancel()  # its end is seen immediately, not with the next keepalive
        await two.received(3)
        assert time.monotonic() - began < 5
        assert await until(lambda: hook_of(agent).error is None)
        numbers = [int(line) for line in log.read_text().split()]
        assert numbers[0] == 1
        assert numbers == sorted(numbers)
        assert numbers[-1] == 3
        assert numbers.count(3) == 1
        await agent.leave()
        await running
        serving[1].cancel()
    assert content(path)["version"] == 3


async def until(holds: Any) -> bool:  # noqa: ANN401 - a condition
    """Look until it holds: what is looked at is of the process under test, and has no event."""
    async with asyncio.timeout(DEADLINE):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return True


async def test_a_file_that_is_over_the_limit_of_the_process_stays(tmp_path: Path) -> None:
    """As a quota or a full disk has it: some is written, and the rest fails."""
    script = f"""
import asyncio, json, resource, signal
from pathlib import Path
from tests.agent.test_published import Master, keep, text
from kontrol.rpc.errors import LostRemote
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
file = keep(Path({str(tmp_path / "p")!r}))
async def main():
    try:
        await file.follow("t", Master(text(1, a=1), text(2, a="x" * 10000)), pause=1)
    except LostRemote:
        print(json.dumps([file.status.version, file.status.error]))
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    out, _ = await process.communicate()
    version, error = json.loads(out)
    assert (version, "File too large" in error) == (1, True)
    assert content(tmp_path / "p") == {"version": 1, "documents": {"a": 1}}
    assert names(tmp_path) == ["p"]
