"""Options of `kontrol invoke` for callbacks and for many pods, on pods that are real servers."""

import json
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.e2e.invoking import Crowd, crowd, invoke, result, start
from tests.process.helpers import HOLD, Life, life
from tests.rpc.support import line, peer, serving

from kontrol.cli.invoke.input import AGAIN, MAX_STDIN
from kontrol.rpc.errors import Refused
from kontrol.rpc.methods import Call


@pytest.fixture
async def pods() -> AsyncIterator[Crowd]:
    async with crowd(4) as pods:
        yield pods


@pytest.fixture
async def pipe(tmp_path: Path) -> AsyncIterator[Life]:
    async with life(tmp_path) as pipe:
        yield pipe


def callback(folder: Path, pods: list[dict[str, object]]) -> dict[str, str]:
    """Return what a callback's environment says, its files among it."""
    path = folder / "pods.json"
    path.write_text(json.dumps(pods), encoding="utf-8")
    files = {"AGAIN_FILE": str(folder / "again"), "NOTE_FILE": str(folder / "note")}
    return {"TIER": "ns/app", "TERM_ID": "5", "RUN": "105", "PODS_FILE": str(path), **files}


# Input


async def test_every_pod_gets_the_input_byte_for_byte(pods: Crowd, tmp_path: Path) -> None:
    at = {"KONTROL_MASTER": pods.master}
    file = tmp_path / "input"
    for content in (b"", "é\n".encode(), b"\xff\0\n", os.urandom(MAX_STDIN), b"\0" * MAX_STDIN):
        file.write_bytes(content)
        words = ("--all", "--stdin", str(file), "--", "cmp", "-", str(file))
        ran = await invoke(*words, **at)
        assert (ran.status, ran.err) == (0, "")
    prefix = ("/bin/sh", "-c", 'printf "a b" | "$@"', "sh")
    own = await start("#1", "--stdin", "-", "--", "cat", environ=at, prefix=prefix)
    ran = await result(own)
    assert (ran.status, ran.out) == (0, ["pod-1 | a b"])


async def test_input_that_cannot_be_had_runs_nothing(pods: Crowd, tmp_path: Path) -> None:
    at = {"KONTROL_MASTER": pods.master}
    large = tmp_path / "large"
    large.write_bytes(b"x" * (MAX_STDIN + 1))
    for name, says in (
        (tmp_path / "none", "--stdin " + str(tmp_path / "none") + ": No such file"),
        (tmp_path, "Is a directory"),
        (large, f"is over {MAX_STDIN} bytes"),
        (Path("/dev/zero"), f"is over {MAX_STDIN} bytes"),
    ):
        ran = await invoke("--all", "--stdin", str(name), "--", "touch", f"{tmp_path}/ran", **at)
        assert (ran.status, says in ran.err) == (2, True), ran
    assert not (tmp_path / "ran").exists()


async def test_an_agent_that_does_not_know_the_input_does_not_run_without_it(
    tmp_path: Path,
) -> None:
    async def old_exec(_call: Call, raw: str) -> object:
        """Refuse as agents of the version before do."""
        asked = json.loads(raw)
        known = ("argv", "cmd", "env", "stdin", "timeout", "tier", "term", "run")
        for name in asked:
            if name not in known:
                raise Refused("InvalidRequest", f"unknown member {name!r}")
        raise AssertionError("it ran")

    file = tmp_path / "input"
    file.write_bytes(b"\xff")
    async with serving({"exec": old_exec}, heartbeat=5) as port, peer("original_agent.py") as old:
        before = {"id": "before", "key": "b", "ip": "127.0.0.1", "seq": 0, "role": "x"}
        first = {**before, "id": "first", "key": "o", "seq": 1, "nonce": ""}
        at = callback(tmp_path, [{**before, "port": port, "nonce": "0a"}, first])
        at["KONTROL_PORT"] = await line(old)
        words = ("--all", "--stdin", str(file), "--", "touch", f"{tmp_path}/ran")
        ran = await invoke(*words, **at)
    assert ran.status == 5
    assert "before  refused: InvalidRequest: unknown member 'stdin64'" in ran.err
    assert "first   not run: its agent is of the original Kontrol" in ran.err
    assert not (tmp_path / "ran").exists()


# Failures


async def test_after_so_many_failures_the_rest_does_not_begin(pods: Crowd, tmp_path: Path) -> None:
    at = {"KONTROL_MASTER": pods.master}
    command = ("--shell", "--", f"echo >>{tmp_path}/ran; exit 3")
    ran = await invoke("--all", "--parallel", "1", "--max-failures", "2", *command, **at)
    assert ran.status == 5
    assert (tmp_path / "ran").read_text() == "\n\n"
    assert ran.err.splitlines() == [
        "kontrol: 4 of 4 pods failed:",
        "  POD    WHY",
        "  pod-0  exit status 3",
        "  pod-1  exit status 3",
        "  pod-2  not run: 2 pods failed before (--max-failures)",
        "  pod-3  not run: 2 pods failed before (--max-failures)",
    ]
    words = ("--all", "--parallel", "1", "--max-failures", "1", "--json", "--", "false")
    ran = await invoke(*words, **at)
    ends = [json.loads(text) for text in ran.out]
    assert [end.get("kind") for end in ends[:-1]] == ["exit", "skipped", "skipped", "skipped"]
    ran = await invoke("--all", "--max-failures", "1", "--", "true", **at)
    assert (ran.status, ran.err) == (0, "")
    ran = await invoke("--all", "--max-failures", "0", "--", "true", **at)
    assert (ran.status, "whole number from 1" in ran.err) == (2, True)


async def test_best_effort_leaves_failures_to_the_next_run(pods: Crowd, tmp_path: Path) -> None:
    at = callback(tmp_path, pods.pods)
    again, note = tmp_path / "again", tmp_path / "note"
    ran = await invoke("--all", "--best-effort", "--", "true", **at)
    assert (ran.status, ran.err, again.exists(), note.exists()) == (0, "", False, False)
    ran = await invoke("#0", "#2", "--best-effort", "--", "false", **at)
    assert ran.status == 0
    assert "kontrol: 2 of 2 pods failed:" in ran.err
    assert "left to the next run of the callback (--best-effort)" in ran.err
    assert float(again.read_text()) == AGAIN
    assert note.read_text() == "pod-0: exit status 1; pod-2: exit status 1\n"
    # What is there already stays, unless it is later; also junk, which fails the run by its name.
    for had, has in (
        ("2", "2"),
        ("600", f"{AGAIN:g}\n"),
        ("soon", "soon"),
        (" \n", f"{AGAIN:g}\n"),
    ):
        again.write_text(had)
        note.write_text("mine\n")
        ran = await invoke("--all", "--best-effort", "--", "false", **at)
        assert (ran.status, again.read_text(), note.read_text()) == (0, has, "mine\n")
    note.unlink()
    ran = await invoke("--all", "--best-effort", "--json", "--", "false", **at)
    assert ran.status == 0
    assert json.loads(ran.out[-1]) == {"pods": 4, "failed": [f"pod-{n}" for n in range(4)]}
    assert note.read_text().endswith("; pod-2: exit status 1; and 1 more\n")


async def test_best_effort_hides_nothing_that_it_cannot_leave_to_a_run(
    pods: Crowd, tmp_path: Path
) -> None:
    ran = await invoke("--all", "--best-effort", "--", "false", KONTROL_MASTER=pods.master)
    assert (ran.status, "--best-effort is for callbacks" in ran.err) == (2, True)
    at = callback(tmp_path, pods.pods)
    ran = await invoke("web-*", "--best-effort", "--", "true", **at)
    assert ran.status == 3
    (tmp_path / "again").symlink_to(tmp_path / "elsewhere")
    ran = await invoke("#0", "--best-effort", "--", "false", **at)
    assert ran.status == 0  # what is no file fails the run, by its name
    assert not (tmp_path / "elsewhere").exists()
    (tmp_path / "again").unlink()
    at["AGAIN_FILE"] = f"{tmp_path}/no/such"
    ran = await invoke("#0", "--best-effort", "--", "false", **at)
    assert (ran.status, "the failures cannot be noted" in ran.err) == (5, True)


# Liveness


async def test_a_pod_that_hangs_in_mid_command_is_noticed_in_time(pipe: Life) -> None:
    holding = f"LIFE={pipe.path}; {HOLD} setsid sleep 1000 & echo up >&9; wait"
    async with crowd(1, "hung") as hung:
        words = ("--all", "--liveness", "1", "--shell", "--", holding)
        process = await start(*words, environ={"KONTROL_MASTER": hung.master})
        assert await pipe.line() == "up"
        os.kill(hung.process.pid, signal.SIGSTOP)
        begun = time.monotonic()
        ran = await result(process)
        took = time.monotonic() - begun
    assert ran.status == 5
    assert "hung-0  lost while its command ran: no answer for 1 s (--liveness)" in ran.err
    assert took < 8  # without, 10 to 15, and the end of the process


async def test_a_pod_that_answers_is_left_alone(pods: Crowd) -> None:
    at = {"KONTROL_MASTER": pods.master}
    words = ("--all", "--liveness", "1", "--shell", "--", "seq 1 200000; sleep 2.5; echo end")
    ran = await invoke(*words, **at)
    assert (ran.status, ran.err) == (0, "")
    assert sum(line.endswith("| end") for line in ran.out) == 4
    ran = await invoke("--all", "--liveness", "0.5", "--", "true", **at)
    assert (ran.status, "expected at least 1 second" in ran.err) == (2, True)
