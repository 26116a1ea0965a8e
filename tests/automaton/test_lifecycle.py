"""Starting, signals, exit statuses, the log, and life as PID 1."""

import asyncio
import os
import shutil
import signal
import stat
import sys
import time
from pathlib import Path

import pytest
from tests.automaton.support import AUTOMATON, automaton, run

from kontrol_common.processes import ENDING_SIGNALS, STRAY_SIGNALS

BOT = """
initial: A
terminal: Z
states:
- {tag: A, shell: 'echo up; sleep 600', next: [B]}
- {tag: B}
- {tag: Z, shell: 'echo tidy; exit 5'}
"""
HUNG = BOT.replace("echo tidy; exit 5", "trap : TERM; echo hung; while :; do sleep 1; done")


@pytest.mark.parametrize("number", ENDING_SIGNALS)
async def test_a_signal_ends_through_the_terminal_state_with_status_0(
    tmp_path: Path, number: signal.Signals
) -> None:
    async with automaton(tmp_path, BOT) as bot:
        await bot.says("up")
        bot.signal(number)
        await bot.says(f"{number.name}: shutting down")
        await bot.says(r"A -> Z \(shutdown\)")
        await bot.says("tidy")
        assert await bot.exit() == 0


@pytest.mark.parametrize("number", STRAY_SIGNALS)
async def test_a_signal_that_means_nothing_is_ignored_with_a_line(
    tmp_path: Path, number: signal.Signals
) -> None:
    async with automaton(tmp_path, BOT) as bot:
        await bot.says("up")
        bot.signal(number)
        await bot.says(f"{number.name}: ignored")
        bot.signal(signal.SIGTERM)
        await bot.says("tidy")
        assert await bot.exit() == 0


async def test_a_second_signal_kills_the_terminal_script_at_once(tmp_path: Path) -> None:
    async with automaton(tmp_path, HUNG) as bot:
        await bot.says("up")
        bot.signal(signal.SIGTERM)
        await bot.says("hung")
        began = time.monotonic()
        bot.signal(signal.SIGTERM)
        assert await bot.exit() == 0
        assert time.monotonic() - began < 1.0


async def test_a_second_signal_kills_the_running_script_at_once(tmp_path: Path) -> None:
    deaf = 'trap "" TERM; while :; do echo tick; sleep 0.15; done'
    async with automaton(tmp_path, HUNG.replace("echo up; sleep 600", deaf)) as bot:
        await bot.says("tick")
        bot.signal(signal.SIGINT)
        await bot.says("shutting down")
        for _ in range(2):  # signals within 0.1 s count as one
            await bot.says("tick")
        bot.signal(signal.SIGTERM)
        await bot.says("SIGTERM again: killing all")
        assert await bot.exit() == 0
        assert not any("A -> Z" in line for line in bot.lines)


async def test_two_signals_at_a_stroke_are_one(tmp_path: Path) -> None:
    async with automaton(tmp_path, BOT) as bot:
        await bot.says("up")
        bot.signal(signal.SIGTERM)
        bot.signal(signal.SIGINT)
        await bot.says("tidy")
        assert await bot.exit() == 0


@pytest.mark.parametrize(
    ("manifest", "complaint"),
    [
        ("initial: A\nstates: [{tag: A}]\n", "machine.yml:1:1: error: 'terminal' is missing"),
        ("initial: [\n", "machine.yml:2:1: error: not YAML"),
    ],
)
async def test_a_bad_manifest_is_refused_with_status_2(
    tmp_path: Path, manifest: str, complaint: str
) -> None:
    async with automaton(tmp_path, manifest, ready=False) as bot:
        await bot.says(complaint)
        assert await bot.exit() == 2


async def test_a_socket_that_cannot_be_had_is_refused_with_status_2(tmp_path: Path) -> None:
    for path in (tmp_path / "no" / "socket", tmp_path / ("x" * 120), Path("/proc/socket")):
        async with automaton(tmp_path, BOT, "-s", str(path), ready=False) as bot:
            await bot.says(f"automaton: {path}.*with -s")
            assert await bot.exit() == 2


async def test_the_socket_is_for_owner_and_group(tmp_path: Path) -> None:
    async with automaton(tmp_path, BOT) as bot:
        mode = os.stat(bot.socket).st_mode  # noqa: PTH116  # async
        assert stat.S_IMODE(mode) == 0o660
        assert await bot.die() == 0


async def test_a_log_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    async with automaton(tmp_path, BOT, "-l", "no/such/folder/log", ready=False) as bot:
        await bot.says("no log file: no/such/folder/log: No such file or directory")
        await bot.says("start")
        assert await bot.die() == 0


async def test_a_full_disk_under_the_log_delays_nothing(tmp_path: Path) -> None:
    async with automaton(tmp_path, BOT, "-l", "/dev/full", ready=False) as bot:
        await bot.says("/dev/full: No space left on device; records are lost")
        await bot.says("up")
        assert await bot.ask("WAIT B") == "OK"
        assert await bot.die() == 0
        assert sum("No space left" in line for line in bot.lines) == 1


async def test_standard_error_that_is_not_read_delays_nothing(tmp_path: Path) -> None:
    manifest = BOT.replace("echo up; sleep 600", "seq 100000; echo done > fifo")
    (tmp_path / "machine.yml").write_text(manifest)
    done = fifo(tmp_path / "fifo")
    unread, theirs = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *AUTOMATON, "machine.yml", "-d", "-s", "socket", cwd=tmp_path, stderr=theirs
    )
    os.close(theirs)
    try:
        await asyncio.wait_for(done, 20)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == 0
        assert "\n  . 100000\n" in read(tmp_path / "automaton.log"), "the file has it all"
    finally:
        os.close(unread)
        if process.returncode is None:
            process.kill()
            await process.wait()


def fifo(path: Path) -> asyncio.Future[None]:
    """Make a named pipe; the future is done when it has been written to."""
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    loop = asyncio.get_running_loop()
    written = loop.create_future()

    def news() -> None:
        loop.remove_reader(reader)
        os.close(reader)
        written.set_result(None)

    loop.add_reader(reader, news)
    return written


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


async def test_a_script_that_fails_says_why_without_debug(tmp_path: Path) -> None:
    manifest = BOT.replace("echo up; sleep 600", "echo because >&2; exit 9")
    manifest = manifest.replace("{tag: B}", "{tag: B, next: [A]}")
    (tmp_path / "machine.yml").write_text(manifest)
    process = await asyncio.create_subprocess_exec(
        *AUTOMATON,
        "machine.yml",
        *("-s", "socket"),
        cwd=tmp_path,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    async with asyncio.timeout(20):
        assert b"exit status 9" in await process.stderr.readline()
        assert await process.stderr.readline() == b"  . because\n"
        process.send_signal(signal.SIGTERM)
        await process.communicate()
    assert process.returncode == 0
    assert "A -> Z" in read(tmp_path / "automaton.log")


async def test_idle_it_does_not_wake(tmp_path: Path) -> None:
    """Waits in a stretch of idle time, long enough for any poll to show."""
    async with automaton(tmp_path, BOT.replace("initial: A", "initial: B")) as bot:
        await bot.ask("STATE")
        before = switches(bot.pid)
        await asyncio.sleep(2.0)  # the stretch itself, not a wait for something
        assert switches(bot.pid) - before <= 2
        assert await bot.die() == 0


def switches(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


BUG = """
import automaton.machine, sys
def bug(*_):
    raise RuntimeError("a bug")
automaton.machine.Machine._TABLE[automaton.machine.Phase.RUNNING][automaton.machine.Transit] = bug
from automaton.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("where", ["command", "callback"])
async def test_an_internal_error_ends_it_with_status_1_and_leaves_nothing(
    tmp_path: Path, where: str
) -> None:
    bug = BUG if where == "command" else BUG.replace("Transit] =", "Fired] =")
    command = (sys.executable, "-c", bug)
    manifest = BOT.replace("next: [B]", "next: [B], timeout: 0.5")
    async with automaton(tmp_path, manifest, command=command) as bot:
        await bot.says("up")
        if where == "command":
            with pytest.raises((ConnectionError, AssertionError)):
                assert await bot.ask("GOTO B")
        await bot.says("RuntimeError: a bug")
        await bot.says("an internal error; please report it")
        assert await bot.exit() == 1


@pytest.mark.privileged
async def test_as_pid_1_it_reaps_orphans_and_ends_well(tmp_path: Path) -> None:
    assert shutil.which("unshare"), "util-linux is needed"
    manifest = """
initial: A
terminal: Z
states:
- tag: A
  shell: |
    echo "parent is $PPID"
    for i in 1 2 3 4 5; do (setsid sh -c 'sleep 0.05 &' &); done
    sleep 0.5
    echo "zombies: $(cat /proc/[0-9]*/stat | grep -c ') Z ')"
    exit 4
  on: {failure: B}
- {tag: B, shell: 'echo B; setsid sleep 600 & sleep 600'}
- {tag: Z, shell: 'echo tidy'}
"""
    (tmp_path / "machine.yml").write_text(manifest)
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--pid", "--fork", "--user", "--map-root-user", "--mount-proc"),
        "--kill-child",
        *AUTOMATON,
        "machine.yml",
        *("-d", "-s", "socket"),
        cwd=tmp_path,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    lines: list[str] = []
    try:
        async with asyncio.timeout(30):
            async for line in process.stderr:
                lines.append(line.decode().strip())
                if lines[-1] == ". B":
                    status, out = await run(*AUTOMATON, "ctl", str(tmp_path / "socket"), "DIE")
                    assert (status, out) == (0, "OK\n")
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = "\n".join(lines)
    assert ". parent is 1\n" in text
    assert ". zombies: 0\n" in text
    assert "exit status 4" in text
    assert ". tidy" in text
