"""`kontrol pods --watch`, as its own process: on a terminal, and in a pipe."""

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.cli.master import PODS, Master, Reply, pod, status

from kontrol.cli.address import Endpoint
from kontrol.cli.operate.pods import follow
from kontrol.cli.rest import Rest, RestError

DEADLINE = 60.0
HOME = b"\x1b[H"


def another(master: Master, digest: str, pods: list[dict[str, object]]) -> None:
    """Change the ensemble."""
    master.replies["GET /v1/pods"] = Reply({"pods": pods, "digest": digest})
    ensemble = {"pods": len(pods), "roles": {}, "digest": digest}
    master.replies["GET /v1/status"] = Reply(status(ensemble=ensemble))


@contextmanager
def watching(
    master: Master, *words: str, out: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[bytes]]:
    environ = {name: text for name, text in os.environ.items() if not name.startswith("KONTROL_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "kontrol", "pods", "--watch", *words],
        stdout=out,
        stderr=subprocess.PIPE,
        env={**environ, "KONTROL_MASTER": master.url, "NO_COLOR": "1", "TERM": "xterm"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


class Terminal:
    """The other side of a terminal; `seen` is all that was drawn."""

    def __init__(self, lines: int, columns: int) -> None:
        self.main, self.other = pty.openpty()
        fcntl.ioctl(self.other, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))
        self.seen = b""

    def until(self, text: bytes, since: int = 0) -> bytes:
        """Read until a text comes; return what came since."""
        ends = time.monotonic() + DEADLINE
        while text not in self.seen[since:]:
            ready, _, _ = select.select([self.main], [], [], max(0, ends - time.monotonic()))
            assert ready, f"{text!r} did not come: {self.seen[since:]!r}"
            self.seen += os.read(self.main, 65536)
        return self.seen[since:]

    def close(self) -> None:
        for descriptor in (self.main, self.other):
            os.close(descriptor)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    with contextlib.closing(Terminal(7, 80)) as terminal:
        yield terminal


def test_a_terminal_is_drawn_in_place_on_change_alone(master: Master, terminal: Terminal) -> None:
    with watching(master, out=terminal.other) as process:
        first = terminal.until(b"\x1b[J")
        assert first.startswith(b"\x1b[?1049h\x1b[?25l\x1b[H3 pods, digest 1f:00:")
        assert b"redis-8" in first
        asked = len(master.asked)
        while len(master.asked) < asked + 2:  # two looks at what did not change
            master.came.wait(DEADLINE)
            master.came.clear()
        mark = len(terminal.seen)
        another(master, "aa:bb", [*PODS, pod(12, id="evil\x1b]0;x\x07"), pod(13)])
        second = terminal.until(b"\x1b[J", mark)
        assert second.startswith(HOME + b"5 pods, digest aa:bb")
        assert b"... and 2 lines more" in second  # the terminal has seven
        assert b"\x1b]" not in second
        assert terminal.seen.count(HOME) == 2
        process.send_signal(signal.SIGINT)
        terminal.until(b"\x1b[?25h\x1b[?1049l")
        assert process.wait(DEADLINE) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_a_master_that_goes_away_is_waited_for(master: Master, terminal: Terminal) -> None:
    with watching(master, out=terminal.other) as process:
        terminal.until(b"\x1b[J")
        good = master.replies["GET /v1/status"]
        error = {"error": {"name": "Unavailable", "message": "etcd is away"}}
        master.replies["GET /v1/status"] = Reply(error, status=503)
        mark = len(terminal.seen)
        assert b"etcd is away" in terminal.until(b"\x1b[J", mark)
        master.replies["GET /v1/status"] = good
        mark = len(terminal.seen)
        assert b"etcd is away" not in terminal.until(b"\x1b[J", mark)
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == 130


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_a_pipe_gets_each_change(master: Master, words: list[str]) -> None:
    with watching(master, "--role", "cache", *words) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        another(master, "aa:bb", [*PODS, pod(12)])
        if words:
            assert [one["seq"] for one in json.loads(first)["pods"]] == [7, 8]
            second = json.loads(process.stdout.readline())
            assert ([one["seq"] for one in second["pods"]], second["digest"]) == (
                [7, 8, 12],
                "aa:bb",
            )
        else:
            assert first.startswith(b"2 pods, digest 1f:")
            lines = [process.stdout.readline() for _ in range(9)]
            assert lines[:5][-1] == b"\n"
            assert lines[5] == b"3 pods, digest aa:bb\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == 130


def test_without_a_master_it_does_not_begin() -> None:
    with pytest.raises(RestError):
        follow(Rest([Endpoint("http", "127.0.0.1", 1)]), [], as_json=False)
