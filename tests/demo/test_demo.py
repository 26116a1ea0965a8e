"""The demonstration, as a user sees it."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

MARK = "DEMO_TEST_MARK"


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """An environment that every process of the demonstration inherits; none may outlive it."""
    mark = uuid.uuid4().hex
    yield {**os.environ, MARK: mark}
    assert _survivors(mark) == []


def _survivors(mark: str) -> list[str]:
    """Return the command lines of the processes that carry the mark."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and mark in (process / "environ").read_text("latin-1"):
                found.append((process / "cmdline").read_text("latin-1").replace("\0", " "))
        except OSError:
            continue  # gone, or not ours
    return found


def test_it_tells_every_change_and_leaves_nothing(environment: dict[str, str]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "kontrol", "demo", "--pace", "0"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    shown = [line.partition("| ")[2].split() for line in lines if "| " in line]
    told = [(row[0], row[2], row[-1]) for row in shown if row[0] in "+-~"]
    assert ("+", "web-1", '"STARTING"}') in told
    assert ("~", "web-2", '"READY"}') in told
    assert ("-", "web-1", "left") in told
    assert ("-", "web-3", "lost") in told
    assert ("+", "web-4", '"STARTING"}') in told
    assert "master-1 is leader" in result.stdout
    assert "master-2 is leader" in result.stdout
    assert "\033" not in result.stdout, "colours are for terminals"
    assert lines[-1].strip() == "nothing is left running"


@pytest.mark.parametrize("after", ["private etcd", "elect a leader", "web-2 changes"])
def test_it_ends_cleanly_on_ctrl_c(environment: dict[str, str], after: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "kontrol", "demo", "--pace", "0"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if after in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.stderr.read() == ""
        assert process.wait(20) == 130
    assert "interrupted" in rest


def test_it_ends_cleanly_when_its_output_is_closed(environment: dict[str, str]) -> None:
    """As in `kontrol demo | head`; the environment tells whether anything is left running."""
    with subprocess.Popen(
        [sys.executable, "-m", "kontrol", "demo", "--pace", "0"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if "elect a leader" in line:
                break
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(20) == 0
