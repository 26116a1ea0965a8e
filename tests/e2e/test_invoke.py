"""`kontrol invoke` on pods that are real servers, as its user sees it.

The two hundred pods share one process, its guards, and this machine's processors: each by itself
would have all that to itself.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.e2e.invoking import DEADLINE, Crowd, crowd, high_water, invoke, result, start
from tests.process.helpers import HOLD, Life, life
from tests.rpc.keyed import cluster
from tests.rpc.support import line, peer

HUNDRED_MB = 100_000_000


@pytest.fixture
async def pipe(tmp_path: Path) -> AsyncIterator[Life]:
    async with life(tmp_path) as pipe:
        yield pipe


@pytest.fixture
async def pods() -> AsyncIterator[Crowd]:
    async with crowd(3) as pods:
        yield pods


def holding(pipe: Life) -> str:
    return f"LIFE={pipe.path}; {HOLD} setsid sleep 1000 & echo up >&9; wait"


def spawning(count: int) -> float:
    """Return the seconds that so many bare processes take, one after another."""
    begun = time.monotonic()
    for _ in range(count):
        subprocess.run(["true"], check=True)
    return time.monotonic() - begun


async def test_two_hundred_pods_within_two_seconds() -> None:
    """Where others keep the machine busy: within a few times what bare processes take just then."""
    async with crowd(200) as pods:
        taken = []
        for _ in range(6):
            bare = spawning(200)
            begun = time.monotonic()
            ran = await invoke("--all", "--", "true", KONTROL_MASTER=pods.master)
            seconds = time.monotonic() - begun
            assert (ran.status, ran.out, ran.err) == (0, [], "")
            if seconds < max(2.0, 6 * bare):
                return
            taken.append(f"{seconds:.1f} s, and bare processes {bare:.2f} s")
        pytest.fail(f"{taken}")


async def test_chooses_shows_and_tells_who_failed(pods: Crowd) -> None:
    at = {"KONTROL_MASTER": pods.master}
    ran = await invoke("#1", "pod-0", "--", "echo", "it's", "$HOME", **at)
    assert (ran.status, sorted(ran.out)) == (0, ["pod-0 | it's $HOME", "pod-1 | it's $HOME"])
    ran = await invoke(
        "--where", "payload.state=READY", "--shell", "--", "echo a; echo b >&2", **at
    )
    assert (ran.status, ran.out, ran.err) == (0, ["pod-1 | a"], "pod-1 | b\n")
    ran = await invoke("--role", "pod", "--shell", "--", "printf x; exit $(($$ % 2 + 1))", **at)
    assert (ran.status, sorted(ran.out)) == (5, [f"pod-{n} | x" for n in range(3)])
    assert "kontrol: 3 of 3 pods failed:\n  POD    WHY\n  pod-0  exit status" in ran.err
    ran = await invoke("pod-0", "--timeout", "0.2", "--", "sleep", "1000", **at)
    assert (ran.status, "pod-0  timed out after 0.2 s" in ran.err) == (5, True)
    ran = await invoke("pod-0", "--", "no-such-program", **at)
    assert (ran.status, "pod-0  not started: could not be found" in ran.err) == (5, True)


async def test_an_agent_of_the_original_is_called_on_the_tiers_port(tmp_path: Path) -> None:
    old = {"id": "old", "key": "o", "ip": "127.0.0.1", "seq": 0, "role": "x", "nonce": ""}
    off = {"id": "off", "key": "p", "ip": "127.0.0.1", "seq": 1, "role": "y", "nonce": "0a"}
    async with peer("original_agent.py") as agent:
        at = {**callback(tmp_path, [old, off], term=1), "KONTROL_PORT": await line(agent)}
        ran = await invoke("--role", "x", "--", "echo", "it's", "$HOME", **at)
        assert (ran.status, ran.out, ran.err) == (0, ["old | it's $HOME"], "")
        ran = await invoke("old", "--shell", "--", "echo a; echo b; exit 3", **at)
        assert (ran.status, ran.out) == (0, ["old | a", "old | b"])
        ran = await invoke("old", "--json", "--", "true", **at)
        assert json.loads(ran.out[0])["why"] == (
            "exit status unknown: its agent is of the original Kontrol"
        )
        ran = await invoke("old", "--timeout", "0.1", "--", "sleep", "30", **at)
        assert (ran.status, "old  hung: its command did not end in time" in ran.err) == (5, True)
        ran = await invoke("--all", "--", "true", **at)
        assert (ran.status, "off  accepts no commands: set" in ran.err) == (5, True)
        keys = {"KONTROL_KEYS": str(cluster(tmp_path / "keys"))}
        ran = await invoke("old", "--", "true", **at, **keys)
        assert (
            ran.status,
            "old  its agent is of the original Kontrol, which has no keys" in ran.err,
        ) == (
            5,
            True,
        )
    ran = await invoke("old", "--", "true", **at)
    assert ran.status == 5
    assert "the connection was refused (its agent is of the original Kontrol: its record" in ran.err


async def test_what_is_too_large_to_send_is_told_and_not_lost(pods: Crowd) -> None:
    ran = await invoke("pod-0", "--", *["x" * 100_000] * 6, KONTROL_MASTER=pods.master)
    assert ran.status == 5
    assert "pod-0  not started: exec: 600" in ran.err
    assert "bytes are over the limit of 524288" in ran.err


async def test_takes_fewer_at_once_where_descriptors_are_few() -> None:
    async with crowd(40) as pods:
        words = ("/bin/sh", "-c", 'ulimit -n 90; exec "$@"', "sh")
        ran = await result(
            await start(
                *("--all", "--parallel", "256", "--", "true"),
                prefix=words,
                environ={"KONTROL_MASTER": pods.master},
            )
        )
        assert (ran.status, ran.err) == (0, "")


async def test_statuses_tell_what_is_wrong(pods: Crowd) -> None:
    at = {"KONTROL_MASTER": pods.master}
    for status, words, says in (
        (3, ["pod-0", "pdo-*", "--", "true"], "no pod has the id, key or number 'pdo-*' among 3"),
        (3, ["--role", "web", "--", "true"], "no pod of 3 matches"),
        (2, ["--", "true"], "expected a selector, --role or --where, or --all for every pod"),
        (2, ["--all", "pod-0", "--", "true"], "remove the selectors"),
        (2, ["--all"], "expected a command after --"),
        (2, ["--all", "--shell", "--", "echo", "a"], "--shell takes one word, and there are 2"),
        (2, ["--all", "--parallel", "1000", "--", "true"], "expected a whole number from 1 to 256"),
        (2, ["--all", "--where", "x", "--", "true"], "expected a path and a value"),
        (2, ["--all", "--master", "a/b", "--", "true"], "--master"),
        (4, ["--all", "--master", "127.0.0.1:9", "--", "true"], "no master listed the pods"),
    ):
        ran = await invoke(*words, **at)
        assert (ran.status, says in ran.err) == (status, True), ran
    ran = await invoke("--help")
    assert ran.status == 0
    assert any("kontrol invoke --role redis -- redis-cli ping" in line for line in ran.out)


async def test_json_tells_all_that_happens(pods: Crowd) -> None:
    ran = await invoke("pod-2", "--json", "--", "echo", "hi", KONTROL_MASTER=pods.master)
    output, end, last = (json.loads(line) for line in ran.out)
    assert output == {"pod": "pod-2", "key": "pod2", "stdout": "hi\n"}
    assert (end["pod"], end["ok"], end["exit"]) == ("pod-2", True, 0)
    assert last == {"pods": 1, "failed": []}


async def test_dead_and_hung_pods_delay_no_other_pod_and_are_named(tmp_path: Path) -> None:
    """Those that are well have done all that they were told before the hung one is given up."""
    async with crowd(3) as well, crowd(1, "hung") as hung, crowd(1, "dead") as dead:
        dead.process.kill()
        await dead.process.wait()
        os.kill(hung.process.pid, signal.SIGSTOP)
        closed = {"id": "closed", "key": "c", "ip": "127.0.0.1", "seq": 9}
        process = await start(
            *("--all", "--shell", "--", f"echo up; echo >>{tmp_path}/told"),
            environ=callback(tmp_path, [*hung.pods, *dead.pods, *well.pods, closed], term=5),
        )
        assert process.stdout is not None
        async with asyncio.timeout(4):  # a hung pod is given up after 5 s
            lines = [await process.stdout.readline() for _ in range(3)]
        assert sorted(lines) == [b"pod-%d | up\n" % number for number in range(3)]
        ran = await result(process)
        assert ran.status == 5
        assert "kontrol: 3 of 6 pods failed:" in ran.err
        assert "  hung-0  hung: no answer within 5 s; the command was not sent" in ran.err
        assert "  dead-0  dead: tcp://127.0.0.1:" in ran.err
        assert "  closed  accepts no commands: set KONTROL_KEYS, or KONTROL_INVOKE" in ran.err
        assert (tmp_path / "told").read_text() == "\n\n\n"


async def test_a_hundred_megabytes_stream_in_bounded_memory(pods: Crowd) -> None:
    command = f"yes 0123456789abcde | head -c {HUNDRED_MB}"
    before = pods.high_water()
    process = await start(
        "pod-0", "--shell", "--", command, environ={"KONTROL_MASTER": pods.master}
    )
    assert process.stdout is not None
    lines = 0
    async with asyncio.timeout(DEADLINE):
        while lines < HUNDRED_MB // 16 - 1:
            chunk = await process.stdout.read(2**20)
            assert chunk, f"it ended after {lines} lines"
            lines += chunk.count(b"\n")
        grown = pods.high_water() - before, high_water(process.pid)
    ran = await result(process)
    assert (ran.status, lines + len(ran.out)) == (0, HUNDRED_MB // 16)
    assert grown[0] < 20_000_000
    assert grown[1] < 80_000_000


async def test_interrupted_it_ends_the_commands_everywhere(pods: Crowd, pipe: Life) -> None:
    process = await start(
        "--all", "--shell", "--", holding(pipe), environ={"KONTROL_MASTER": pods.master}
    )
    for _ in pods.pods:
        assert await pipe.line() == "up"
    process.send_signal(signal.SIGINT)
    await pipe.gone()
    ran = await result(process)
    assert ran.status == 130
    for number in range(3):
        assert f"  pod-{number}  interrupted: its command was ended" in ran.err


async def test_interrupted_it_names_those_that_may_go_on(pipe: Life) -> None:
    async with crowd(1) as well, crowd(1, "hung") as hung:
        pods = json.dumps([*well.pods, *hung.pods])
        (pipe.path.parent / "pods.json").write_text(pods, encoding="utf-8")
        environ = callback(pipe.path.parent, [*well.pods, *hung.pods], term=5)
        process = await start("--all", "--shell", "--", holding(pipe), environ=environ)
        assert [await pipe.line(), await pipe.line()] == ["up", "up"]
        os.kill(hung.process.pid, signal.SIGSTOP)
        process.send_signal(signal.SIGINT)
        ran = await result(process)
        assert ran.status == 130
        assert "  pod-0   interrupted: its command was ended" in ran.err
        assert "  hung-0  interrupted: it does not answer, and may still run its command" in ran.err


async def test_a_second_interrupt_leaves_at_once(pipe: Life) -> None:
    async with crowd(1, "hung") as hung:
        process = await start(
            "--all", "--shell", "--", holding(pipe), environ={"KONTROL_MASTER": hung.master}
        )
        assert await pipe.line() == "up"
        os.kill(hung.process.pid, signal.SIGSTOP)
        begun = time.monotonic()
        for _ in range(20):  # the first may be handled only once all have come
            # Not `send_signal`, which may take the exit status before asyncio does.
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGINT)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await process.wait()
                    break
        assert (await result(process)).status == 130
        assert time.monotonic() - begun < 1.9  # deregistration takes 2 s


def callback(folder: Path, pods: list[dict[str, object]], *, term: int) -> dict[str, str]:
    """Return what a callback's environment says."""
    path = folder / f"pods-{term}.json"
    path.write_text(json.dumps(pods), encoding="utf-8")
    return {"TIER": "ns/app", "TERM_ID": str(term), "RUN": str(100 + term), "PODS_FILE": str(path)}


async def test_what_a_dead_leader_left_is_ended_by_the_next_ones_call(
    pods: Crowd, pipe: Life, tmp_path: Path
) -> None:
    """Its callback was killed by SIGKILL, and no agent knows yet."""
    lock = tmp_path / "lock"
    line = f"exec 8>{lock}; flock -s 8; {holding(pipe)}"
    old = await start("#0", "--shell", "--", line, environ=callback(tmp_path, pods.pods, term=5))
    assert await pipe.line() == "up"
    old.kill()
    new = callback(tmp_path, pods.pods, term=6)
    ran = await invoke("#0", "--", "flock", "-n", str(lock), "echo", "alone", **new)
    assert (ran.status, ran.out) == (0, ["pod-0 | alone"])
    await pipe.gone()
    await old.communicate()
    ran = await invoke("#0", "--", "true", **callback(tmp_path, pods.pods, term=5))
    assert ran.status == 5
    assert "refused: Fenced: term 5 of tier 'ns/app' is over: term 6 has called here" in ran.err
    assert (await invoke("#1", "--", "true", **callback(tmp_path, pods.pods, term=5))).status == 0


async def test_a_command_that_kills_its_guard_ends_only_itself(
    pods: Crowd, pipe: Life, tmp_path: Path
) -> None:
    at = {"KONTROL_MASTER": pods.master}
    (tmp_path / "other").mkdir()
    async with life(tmp_path / "other") as other:
        well = await start("#0", "--shell", "--", holding(pipe), environ=at)
        assert await pipe.line() == "up"
        line = f"LIFE={other.path}; {HOLD} setsid sleep 1000 & echo up >&9; kill -9 $PPID; wait"
        ran = await invoke("#1", "--shell", "--", line, **at)
        assert (ran.status, "pod-1  its guard process died" in ran.err) == (5, True)
        assert await other.line() == "up"
        await other.gone()
        assert (await invoke("#1", "--", "true", **at)).status == 0
        assert not pipe.is_gone()
        well.send_signal(signal.SIGTERM)
        assert (await result(well)).status == 130
        await pipe.gone()


async def test_a_reader_that_has_had_enough_ends_the_commands(pods: Crowd, pipe: Life) -> None:
    line = f"LIFE={pipe.path}; {HOLD} echo up >&9; yes"
    process = await start("--all", "--shell", "--", line, environ={"KONTROL_MASTER": pods.master})
    assert process.stdout is not None
    for _ in pods.pods:
        assert await pipe.line() == "up"
    await process.stdout.readline()
    process.stdout._transport.close()  # type: ignore[attr-defined]  # asyncio has no other way
    await pipe.gone()
    async with asyncio.timeout(DEADLINE):
        assert await process.wait() == 0
