"""How a command begins, and what is said of one that could not."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.process.helpers import shell

from kontrol.process.command import Command
from kontrol.process.guard import Guard


@pytest.fixture
def background_job() -> Iterator[None]:
    before = signal.signal(signal.SIGQUIT, signal.SIG_IGN)  # as a shell does for `daemon &`
    yield
    signal.signal(signal.SIGQUIT, before)


@pytest.mark.usefixtures("background_job")
async def test_a_command_begins_with_a_session_default_signals_and_three_descriptors(
    guard: Guard,
) -> None:
    script = "read -r _ _ _ _ group session _ < /proc/$$/stat; echo $group $session $$"
    outcome = await guard.run(shell(script), deadline=None)
    assert len(set(outcome.stdout.split())) == 1
    outcome = await guard.run(Command(("/bin/ls", "/proc/self/fd"), {}), deadline=None)
    fds = outcome.stdout.decode().split()
    assert fds == ["0", "1", "2", "3"]  # 3 is the folder that `ls` reads
    status = Command(("/bin/cat", "/proc/self/status"), {})  # a shell would unblock signals itself
    lines = (await guard.run(status, deadline=None)).stdout.decode().splitlines()
    masks = {
        name: int(mask, 16) & ~(0b11 << 31)  # 32 and 33 are the C library's own
        for name, _, mask in (line.partition(":\t") for line in lines)
        if name in {"SigBlk", "SigIgn"}
    }
    assert masks == {"SigBlk": 0, "SigIgn": 0}


def folder_and_file(folder: Path, content: bytes, mode: int) -> str:
    path = folder / "program"
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(
    ("content", "mode", "detail"),
    [
        (b"", 0o644, "permission denied: make it executable"),
        (b"no magic\n", 0o755, "is not a program that this machine can run: begin a script with"),
        (b"#!/no/such/sh\n", 0o755, "is there, but its interpreter '/no/such/sh' could not be"),
        (b"#!/bin/sh\r\nexit\r\n", 0o755, "is there, but its interpreter '/bin/sh\\r' (lines end"),
    ],
)
async def test_names_what_is_wrong_with_a_file(
    guard: Guard, tmp_path: Path, content: bytes, mode: int, detail: str
) -> None:
    path = folder_and_file(tmp_path, content, mode)
    outcome = await guard.run(Command((path,), {}), deadline=None)
    assert (outcome.reason, outcome.status, outcome.signal) == ("not started", None, None)
    assert outcome.detail.startswith(f"{path!r}")
    assert detail in outcome.detail


@pytest.mark.parametrize(
    ("command", "detail"),
    [
        (Command(("no-such",), {"PATH": "/bin"}), "could not be found: 'no-such' in PATH '/bin':"),
        (Command(("/no/such",), {}), "could not be found: '/no/such': correct the path"),
        (Command(("/etc/passwd/x",), {}), "'/etc/passwd/x': has a part that is not a folder"),
        (Command(("/",), {}), "'/': permission denied"),
        (Command(("/bin/true",), {}, cwd="/no"), "its folder '/no' could not be entered: no such"),
        (Command(("/bin/true", "x" * 200_000), {}), "its arguments and environment are larger"),
        (Command(("x" * 100_000,), {"PATH": "/bin"}), "is too long a path: shorten it"),
        (Command(("/x" * 50_000,), {}), "is too long a path: shorten it"),
        (Command(("/bin/true",), {}, cwd="\n" * 100_000), "could not be entered: file name too"),
        (Command(("/bin/true", "a\0b"), {}), "hold a NUL"),
        (Command(("/bin/true",), {"A\0": ""}), "hold a NUL"),
    ],
)
async def test_names_what_kept_a_command_from_starting(
    guard: Guard, command: Command, detail: str
) -> None:
    outcome = await guard.run(command, deadline=None)
    assert outcome.reason == "not started"
    assert detail in outcome.detail


async def test_a_later_folder_of_the_path_may_have_what_an_earlier_denies(
    guard: Guard, tmp_path: Path
) -> None:
    (tmp_path / "true").touch(mode=0o644)
    path = f"{tmp_path}:/no/such:/bin:/usr/bin"
    assert (await guard.run(Command(("true",), {"PATH": path}), deadline=None)).status == 0


def test_a_command_needs_a_program() -> None:
    for argv in ((), ("",), ("", "a")):
        with pytest.raises(ValueError, match="names no program"):
            Command(argv, {})
