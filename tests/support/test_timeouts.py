"""A test that takes too long fails by its name, and the others go on."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
CONFTEST = """
import time
import pytest
from tests.support import timeouts

timeouts.AGAIN = 0.2

def pytest_configure(config):
    config.pluginmanager.register(timeouts)

@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    if "report" in item.name:
        time.sleep(1)  # on a busy machine
    return (yield)
"""
TESTS = """
import asyncio, time
import pytest

@pytest.fixture
def slow_to_make():
    time.sleep(60)

@pytest.fixture
def slow_to_end():
    yield
    time.sleep(60)

def test_good(): ...
def test_bad(): assert False
def test_call(): time.sleep(60)
async def test_loop(): await asyncio.Event().wait()
def test_fixture(slow_to_make): ...
def test_ending(slow_to_end): ...
def test_good_whose_report_takes_long(): ...
def test_bad_whose_report_takes_long(): assert False

async def test_swallowed():
    loop = asyncio.get_running_loop()
    end = loop.time() + 0.8
    def spin():
        if loop.time() < end:
            time.sleep(0.01)
            loop.call_soon(spin)
    loop.call_soon(spin)
    await asyncio.Event().wait()
"""
STUCK = """
def test_stuck():
    while True:
        try:
            while True: ...
        except BaseException: ...
"""


def told(output: str) -> set[tuple[str, str]]:
    """Return what the summary says of each test."""
    lines = re.finditer(r"^(PASSED|FAILED|ERROR) \S*test_it\.py::test_(\w+)", output, re.MULTILINE)
    return {(line[1], line[2]) for line in lines}


def run(folder: Path, tests: str, *options: str) -> str:
    (folder / "conftest.py").write_text(CONFTEST, encoding="utf-8")
    (folder / "test_it.py").write_text(tests, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "--timeout=0.5"]
    done = subprocess.run(
        [*command, *options, f"--rootdir={folder}", str(folder)],
        cwd=TOP,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "INTERNALERROR" not in done.stdout + done.stderr, done.stdout
    return done.stdout


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_time_out_fails_its_own_test_and_nothing_else(tmp_path: Path, workers: str) -> None:
    output = run(tmp_path, TESTS, "-n", workers)
    assert told(output) == {
        ("PASSED", "good"),
        ("FAILED", "bad"),
        ("FAILED", "call"),
        ("FAILED", "loop"),
        ("ERROR", "fixture"),
        ("PASSED", "ending"),
        ("ERROR", "ending"),
        ("PASSED", "good_whose_report_takes_long"),
        ("FAILED", "bad_whose_report_takes_long"),
        ("FAILED", "swallowed"),
    }, output
    assert "time-out: call took more than 0.5 s" in output


def test_a_test_that_cannot_be_ended_costs_its_worker_alone(tmp_path: Path) -> None:
    output = run(tmp_path, f"{STUCK}\ndef test_good(): ...\n", "-n", "1")
    assert told(output) == {("FAILED", "stuck"), ("PASSED", "good")}, output
