"""Scripts that do their worst delay nothing, and leave nothing running."""

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from tests.automaton.support import AUTOMATON, Automaton, automaton

# Forks twice, leaves the session, ignores SIGTERM, and says so in a file; then stays.
DAEMON = """
import os, pathlib, signal, sys, time
if os.fork():
    sys.exit()
os.setsid()
if os.fork():
    sys.exit()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "clean" in sys.argv:
    os.execve(sys.executable, [sys.executable, "-c", IGNORANT], {})
os.write(1, b"daemon %d\\n" % os.getpid())
time.sleep(600)
"""
IGNORANT = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(1, b"daemon %d\\n" % os.getpid())
time.sleep(600)
"""


def machine(script: str, **more: object) -> str:
    """Return a manifest: `idle`, from which `work` runs the script."""
    return json.dumps(
        {
            "initial": "idle",
            "terminal": "end",
            "states": [
                {"tag": "idle", "next": ["work"]},
                {"tag": "work", "shell": script, "next": ["idle", "work"], **more},
                {"tag": "end", "shell": "echo the end"},
            ],
        }
    )


def daemon(folder: Path, *arguments: str) -> str:
    path = folder / "daemon.py"
    path.write_text(f"IGNORANT = {IGNORANT!r}\n{DAEMON}", encoding="utf-8")
    return " ".join([sys.executable, str(path), *arguments])


async def pid_of(bot: Automaton) -> int:
    return int((await bot.says(r"\. daemon \d+")).split()[-1])


def zombies(parent: int) -> list[str]:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii").split()
    states = {pid: Path(f"/proc/{pid}/stat").read_text(encoding="utf-8") for pid in children}
    return [pid for pid, stat in states.items() if stat.rpartition(") ")[2].startswith("Z")]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.timeout(240)
async def test_a_gigabyte_of_output_delays_nothing(tmp_path: Path) -> None:
    script = f"{sys.executable} -c 'import os\nfor _ in range(1024): os.write(1, b\"x\" * 1048576)'"
    # In debug, the worst case: all of it goes to the log, which rotates.
    manifest = machine(f"echo begin >&2; {script}; echo finished > done")
    async with automaton(tmp_path, manifest, ready=False) as bot:
        await bot.says("idle")
        wait = asyncio.create_task(bot.ask("WAIT work", 200.0))
        slowest = 0.0
        while not wait.done():
            began = time.monotonic()
            assert await bot.ask("STATE") in ("idle", "work")
            slowest = max(slowest, time.monotonic() - began)
        assert await wait == "OK"
        assert (tmp_path / "done").read_text() == "finished\n"
        assert slowest < 2.0, "a question waited for the output"
        assert await bot.die() == 0


async def test_output_without_newlines_is_logged_in_pieces(tmp_path: Path) -> None:
    script = f'{sys.executable} -c \'print("y" * 300000, end="")\'; echo; echo after'
    async with automaton(tmp_path, machine(script)) as bot:
        assert await bot.ask("WAIT work") == "OK"
        assert await bot.die() == 0
    assert (tmp_path / "automaton.log").read_text().count("y") >= 300_000


async def test_a_script_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    script = "trap '' TERM; echo deaf; while :; do sleep 1; done"
    async with automaton(tmp_path, machine(script)) as bot:
        await bot.ask("GOTO work")
        await bot.says("deaf")
        began = time.monotonic()
        assert await bot.ask("GOTO idle") == "OK"
        assert time.monotonic() - began < 0.9, "answered before the script is touched"
        await bot.says("work -> idle")
        assert 5.5 < time.monotonic() - began < 9.0
        assert bot.survivors() == []
        assert await bot.die() == 0


@pytest.mark.parametrize("environment", ["", "clean"])
async def test_a_daemon_that_left_its_session_and_ignores_sigterm_is_killed_too(
    tmp_path: Path, environment: str
) -> None:
    script = f"{daemon(tmp_path, environment)}; sleep 600"
    async with automaton(tmp_path, machine(script)) as bot:
        await bot.ask("GOTO work")
        pid = await pid_of(bot)
        assert await bot.ask("GOTO idle") == "OK"
        await bot.says("work -> idle")
        assert not alive(pid)
        assert await bot.die() == 0


async def test_sigterm_lets_a_script_and_its_children_tidy_up(tmp_path: Path) -> None:
    script = """
    sh -c 'trap "echo child tidy; exit" TERM; echo up; while :; do sleep 0.1; done' &
    trap 'wait; echo parent tidy; exit' TERM
    wait
    """
    async with automaton(tmp_path, machine(script)) as bot:
        await bot.ask("GOTO work")
        await bot.says("up")
        await bot.ask("GOTO idle")
        await bot.says("child tidy")
        await bot.says("parent tidy")
        await bot.says("work -> idle")
        assert await bot.die() == 0


async def test_a_background_child_that_holds_stdout_delays_nothing(tmp_path: Path) -> None:
    script = "(echo holding; sleep 600) & echo done"
    async with automaton(tmp_path, machine(script)) as bot:
        assert await bot.ask("WAIT work", 5.0) == "OK"
        assert await bot.ask("WAIT idle", 5.0) == "OK"
        assert await bot.ask("WAIT work", 5.0) == "OK"
        assert bot.survivors(), "a script that ends by itself may leave a server behind"
        assert await bot.die() == 0


async def test_an_interrupted_script_takes_no_earlier_background_process_along(
    tmp_path: Path,
) -> None:
    script = f'if [ "$INPUT" = serve ]; then {daemon(tmp_path)}; else echo busy; sleep 600; fi'
    async with automaton(tmp_path, machine(script)) as bot:
        assert await bot.ask("WAIT work serve") == "OK"
        server = await pid_of(bot)
        await bot.ask("GOTO work")
        await bot.says("busy")
        assert await bot.ask("WAIT idle") == "OK"
        assert alive(server)
        assert await bot.die() == 0
        assert not alive(server)


async def test_an_automaton_below_another_leaves_nothing_when_it_is_killed(
    tmp_path: Path,
) -> None:
    (tmp_path / "inner").mkdir()
    inner = {
        "initial": "on",
        "terminal": "off",
        "states": [{"tag": "on", "shell": daemon(tmp_path) + "; sleep 600"}, {"tag": "off"}],
    }
    (tmp_path / "inner.yml").write_text(json.dumps(inner))
    script = f"{' '.join(AUTOMATON)} inner.yml -s inner.sock -d -l inner.log & wait"
    async with automaton(tmp_path, machine(script)) as bot:
        await bot.ask("GOTO work")
        pid = await pid_of(bot)
        await bot.ask("GOTO idle")
        await bot.says("work -> idle")
        assert not alive(pid)
        assert await bot.die() == 0


async def test_orphans_are_reaped_without_taking_a_scripts_status(tmp_path: Path) -> None:
    script = """
    for i in $(seq 50); do (sh -c 'sleep 0.01 & exit 0' &) ; done
    sleep 0.3
    exit 7
    """
    async with automaton(tmp_path, machine(script)) as bot:
        assert await bot.ask("WAIT work") == "OK"
        await bot.says("work.*exit status 7")
        assert zombies(bot.pid) == []
        assert await bot.die() == 0


async def test_a_script_that_cannot_start_leaves_the_state_as_it_was(tmp_path: Path) -> None:
    async with automaton(tmp_path, machine("echo on", env={"BIG": "x" * 140_000})) as bot:
        assert await bot.ask("WAIT work") == "KO could not start: Argument list too long"
        assert await bot.ask("STATE") == "idle"
        assert await bot.ask("GOTO work") == "OK", (
            "it is legal; that it cannot start is known later"
        )
        assert await bot.ask("STATE") == "idle"
        assert await bot.die() == 0


async def test_an_input_of_96_kib_reaches_the_script_verbatim(tmp_path: Path) -> None:
    value = "aé\\'\"$(id)\n" * 8000
    value = value.encode()[: 96 * 1024 - 3].decode(errors="ignore") + "end"
    async with automaton(tmp_path, machine('printf %s "$INPUT" > input')) as bot:
        assert await bot.ask(f"WAIT work {value}") == "OK"
        assert (tmp_path / "input").read_text() == value
        raw = b"WAIT work \xff\xfe\x80 junk"
        assert await bot.ask(raw) == "OK"
        assert (tmp_path / "input").read_bytes() == b"\xff\xfe\x80 junk"
        json.loads(await bot.ask("STATUS"))
        assert await bot.die() == 0


async def test_a_hung_terminal_script_is_killed_at_its_time_out(tmp_path: Path) -> None:
    manifest = machine("true").replace(
        '"echo the end"', '"trap true TERM; echo hung; while :; do sleep 1; done", "timeout": 1.5'
    )
    async with automaton(tmp_path, manifest) as bot:
        began = time.monotonic()
        assert await bot.ask("DIE") == "OK"
        await bot.says("hung")
        assert await bot.exit() == 0
        assert time.monotonic() - began < 5.0


async def test_what_is_left_in_the_background_is_ended_with_the_machine(tmp_path: Path) -> None:
    script = (
        "sh -c 'trap \"echo server stops > stopped; exit\" TERM; echo serving; sleep 600 & wait' &"
    )
    async with automaton(tmp_path, machine(script)) as bot:
        assert await bot.ask("WAIT work") == "OK"
        await bot.says("serving")
        bot.signal(signal.SIGTERM)
        assert await bot.exit() == 0
        assert (tmp_path / "stopped").read_text() == "server stops\n"
