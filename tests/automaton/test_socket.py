"""Clients that do their worst, and who may have the socket."""

import asyncio
import fcntl
import json
import os
import resource
import socket
import time
from pathlib import Path

import pytest
from tests.automaton.support import AUTOMATON, DEADLINE, Automaton, automaton, run

from automaton.server import Listener, SocketError

BOT = """
initial: A
terminal: Z
states:
- {tag: A, next: [A, B]}
- {tag: B, shell: 'echo working; sleep 600', next: [A]}
- {tag: Z}
"""


async def connect(bot: Automaton) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(bot.socket)


async def hang_up(*writers: asyncio.StreamWriter) -> None:
    for writer in writers:
        writer.close()
    await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


async def test_500_clients_of_which_half_never_send_anything(tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 700
    async with automaton(tmp_path, BOT) as bot:
        silent = [(await connect(bot))[1] for _ in range(250)]
        began = time.monotonic()
        answers = await asyncio.gather(*(bot.ask("STATE") for _ in range(250)))
        assert answers == ["A"] * 250
        assert time.monotonic() - began < 5.0
        assert await bot.ask("WAIT A") == "OK"
        await hang_up(*silent)
        assert await bot.die() == 0


async def test_silence_in_mid_command_is_answered_after_10_s(tmp_path: Path) -> None:
    async with automaton(tmp_path, BOT) as bot:
        silent, half, lines = [await connect(bot) for _ in range(3)]
        half[1].write(b"GOTO ")
        lines[1].write(b"LINES\nSTATE\n")
        assert await asyncio.wait_for(lines[0].readline(), DEADLINE) == b"A\n"
        began = time.monotonic()
        for reader, _ in (silent, half):
            answer = await asyncio.wait_for(reader.read(), DEADLINE)
            assert answer == b"KO silent for 10 s in mid-command; close your side to end it\n"
        assert 9.0 < time.monotonic() - began < 15.0
        lines[1].write(b"STATE\n")
        assert await asyncio.wait_for(lines[0].readline(), DEADLINE) == b"A\n", "between commands"
        await hang_up(silent[1], half[1], lines[1])
        assert await bot.die() == 0


async def test_binary_junk_is_answered(tmp_path: Path) -> None:
    async with automaton(tmp_path, BOT) as bot:
        for junk in (
            os.urandom(5000),
            b"\xff" * 100,
            b"\0",
            b"GOTO A \0",
            b"\n\n",
            b"LINES\n\0\xff",
        ):
            assert (await bot.ask(junk)).startswith("KO ")
        assert await bot.ask("STATE") == "A"
        assert await bot.die() == 0


async def test_input_over_96_kib_or_with_nul_is_refused(tmp_path: Path) -> None:
    async with automaton(tmp_path, BOT) as bot:
        answer = await bot.ask("GOTO A " + "x" * (96 * 1024 + 1))
        assert answer.startswith("KO 98305 bytes of input; at most 98304")
        assert await bot.ask("GOTO A " + "x" * 96 * 1024) == "OK"
        assert (await bot.ask(b"SET N a\0b")).startswith("KO the command has a NUL byte")
        assert await bot.die() == 0


async def test_a_command_of_100_mb_is_refused_and_costs_no_memory(tmp_path: Path) -> None:
    async with automaton(tmp_path, BOT) as bot:
        before = peak(bot.pid)
        answer = await bot.ask(b"GOTO A " + b"x" * 100_000_000)
        assert answer.startswith("KO ")
        answers = await bot.ask(b"LINES\nGOTO A " + b"x" * 10_000_000 + b"\nSTATE\n")
        assert answers.split("\n")[0].startswith("KO ")
        assert answers.split("\n")[1:] == ["A"]
        assert peak(bot.pid) - before < 8_000
        assert await bot.die() == 0


async def test_a_client_that_never_reads_is_dropped_and_delays_no_other(tmp_path: Path) -> None:
    async with automaton(tmp_path, BOT) as bot:
        before = peak(bot.pid)
        deaf = socket.socket(socket.AF_UNIX)
        deaf.connect(bot.socket)
        deaf.settimeout(0)
        deaf.send(b"LINES\n")
        with_room = True
        while with_room:
            try:
                deaf.send(b"STATUS\n" * 1000)
            except BlockingIOError:
                # Full: it reads no more until its answers are read, which they never are.
                with_room = False
            assert await bot.ask("STATE") == "A"
        assert await bot.ask("WAIT A") == "OK"
        assert peak(bot.pid) - before < 8_000
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(DEADLINE):
            while True:
                try:
                    await loop.sock_sendall(deaf, b"STATE\n")
                except (BrokenPipeError, ConnectionResetError):
                    break
        deaf.close()
        assert await bot.die() == 0


async def test_a_client_that_goes_away_has_its_transition_made_all_the_same(
    tmp_path: Path,
) -> None:
    async with automaton(tmp_path, BOT) as bot:
        _, writer = await connect(bot)
        writer.write(b"WAIT B")
        await hang_up(writer)
        await bot.says("working")
        assert await bot.ask("STATE") == "B"
        assert await bot.die() == 0


async def test_an_answer_under_way_is_delivered_although_the_machine_ends(tmp_path: Path) -> None:
    async with automaton(tmp_path, BOT) as bot:
        assert await bot.ask("WAIT A " + "x\n" * 48_000 + "end") == "OK"
        reader, writer = await connect(bot)
        writer.write(b"LINES\n" + b"STATUS\n" * 10)
        writer.write_eof()  # and read nothing for now: more than the socket's buffer takes
        await bot.says("command .*STATUS")
        assert await bot.ask("DIE") == "OK"
        answers = await asyncio.wait_for(reader.read(), DEADLINE)
        states = [json.loads(line)["state"] for line in answers.splitlines()]
        assert states[0] == "A"
        assert len(states) == 10
        assert await bot.exit() == 0
        await hang_up(writer)


async def test_the_65th_queued_transition_is_refused(tmp_path: Path) -> None:
    async with automaton(tmp_path, BOT.replace("initial: A", "initial: B")) as bot:
        await bot.says("working")
        waits = [asyncio.create_task(bot.ask("WAIT A")) for _ in range(64)]
        for _ in waits:
            await bot.says("command .*WAIT A")
        assert await bot.ask("GOTO A") == "KO 64 transitions are queued; try again later"
        assert await asyncio.gather(*waits) == ["OK"] * 64
        assert await bot.die() == 0


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "socket"))
    async with automaton(tmp_path, BOT) as bot:
        assert await bot.ask("STATE") == "A"
        assert await bot.die() == 0


async def test_a_second_instance_on_a_live_socket_is_refused(tmp_path: Path) -> None:
    async with automaton(tmp_path, BOT) as bot:
        status, _ = await run(*AUTOMATON, str(tmp_path / "machine.yml"), "-s", bot.socket)
        assert status == 2
        assert await bot.ask("STATE") == "A"
        assert await bot.die() == 0


async def test_of_many_that_start_at_once_one_has_the_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "socket"))
    async with automaton(tmp_path, BOT, ready=False) as bot:
        others = [
            run(*AUTOMATON, "machine.yml", "-s", bot.socket, "-l", os.devnull, cwd=tmp_path)
            for _ in range(4)
        ]

        async def first() -> tuple[int, str]:
            return await bot.process.wait(), ""

        ends = [asyncio.ensure_future(other) for other in (*others, first())]
        async with asyncio.timeout(DEADLINE):
            while sum(end.done() for end in ends) < 4:
                left = [end for end in ends if not end.done()]
                await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
        assert [end.result()[0] for end in ends if end.done()] == [2] * 4
        assert await bot.ask("STATE") == "A"
        assert await bot.ask("DIE") == "OK"
        assert sorted(status for status, _ in await asyncio.gather(*ends)) == [0, 2, 2, 2, 2]


async def test_what_is_no_socket_is_not_removed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("data")
    (tmp_path / "machine.yml").write_text(BOT)
    status, _ = await run(*AUTOMATON, str(tmp_path / "machine.yml"), "-s", str(precious))
    assert status == 2
    assert precious.read_text() == "data"


def peak(pid: int) -> int:
    """Return the most memory that a process has ever had resident, in kB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0])


def test_who_looks_for_a_stale_socket_holds_the_folders_lock(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    with pytest.raises(SocketError, match="temporarily unavailable"):
        Listener(tmp_path / "socket")
    os.close(folder)
    listener = Listener(tmp_path / "socket")
    listener.remove()
    assert not list(tmp_path.iterdir())
