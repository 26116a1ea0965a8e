"""The payload file's content: what is taken, what changes nothing."""

import json
import logging
import os
from pathlib import Path

import pytest
from tests.agent.network import IDENTITY, Network, named

from kontrol.agent.agent import Agent, AgentSettings
from kontrol.agent.payload import PayloadFile
from kontrol.agent.schedule import LONGEST_SKEW
from kontrol.ensemble.canonical import JSON
from kontrol.ensemble.pod import MAX_BYTES, parse_keepalive


class Taken:
    """Collects the values that a file gives."""

    def __init__(self, path: Path) -> None:
        self.file = PayloadFile(path)
        self.values: list[JSON] = []

    def look(self) -> list[JSON]:
        self.file.refresh(self.values.append)
        return self.values


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "payload.json"


@pytest.fixture
def taken(path: Path, caplog: pytest.LogCaptureFixture) -> Taken:
    caplog.set_level(logging.INFO)
    return Taken(path)


def test_good_content_is_taken_once(path: Path, taken: Taken) -> None:
    path.write_text('{"state": "READY", "é": [1, null]}\n', encoding="utf-8")
    taken.look()
    assert taken.look() == [{"state": "READY", "é": [1, None]}]
    assert taken.file.error is None


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b'{"state": "RE', "Unterminated string"),
        (b"READY", "Expecting value"),
        (b"NaN", "NaN"),
        (b"1e999", "1e999"),
        (b'"\\ud800"', "surrogate"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "nested deeper"),
        (b"[" * 40 + b"]" * 40, "nested deeper"),
        (b"9" * 5000, "too many digits"),
        (b" " * 300_000, "over 262144 bytes"),
    ],
)
def test_bad_content_keeps_the_last_good_and_is_logged_once(
    path: Path, taken: Taken, caplog: pytest.LogCaptureFixture, content: bytes, complaint: str
) -> None:
    path.write_text("1", encoding="utf-8")
    taken.look()
    path.write_bytes(content)
    taken.look()
    assert taken.look() == [1]
    assert taken.file.error is not None
    assert complaint in taken.file.error
    (line,) = caplog.messages
    assert complaint in line
    assert str(path) in line
    path.write_text("2", encoding="utf-8")
    assert taken.look() == [1, 2]
    assert "in force" in caplog.messages[-1]
    assert taken.file.error is None


def test_a_file_that_goes_keeps_the_last_good(
    path: Path, taken: Taken, caplog: pytest.LogCaptureFixture
) -> None:
    assert taken.look() == []
    path.write_text("1", encoding="utf-8")
    taken.look()
    path.unlink()
    taken.look()
    assert taken.look() == [1]
    path.write_text("1", encoding="utf-8")
    taken.look()
    assert [message.split(": ")[1] for message in caplog.messages] == [
        "there is no such file; the last valid one stays in force",
        "in force",
        "there is no such file; the last valid one stays in force",
        "in force",
    ]


def test_a_fifo_blocks_nothing(path: Path, taken: Taken) -> None:
    os.mkfifo(path)
    assert taken.look() == []
    assert taken.file.error == "not a regular file"


def test_a_directory_is_no_payload(path: Path, taken: Taken) -> None:
    path.mkdir()
    assert taken.look() == []
    assert taken.file.error == "Is a directory"


def test_no_descriptor_is_left_open(path: Path, taken: Taken) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - /proc, not a path of ours
    for content in ("1", "{", " " * 300_000):
        path.write_text(content, encoding="utf-8")
        taken.look()
    path.unlink()
    path.mkdir()
    taken.look()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_payload_is_good_if_a_master_would_take_the_record(
    path: Path,
) -> None:
    network = Network({}, {})
    agent = Agent(
        AgentSettings(named(IDENTITY), (), payload=path),
        connect=network.connect,
        resolve=network.resolve,
    )
    file = PayloadFile(path)
    overhead = len(agent._encode("").encode())
    for size, good in ((MAX_BYTES - overhead, True), (MAX_BYTES - overhead + 1, False)):
        path.write_text(json.dumps("x" * size), encoding="utf-8")
        file.refresh(agent.update)
        assert (file.error is None) == good
    assert agent.status.n == 1
    for down in (False, True):  # what was taken stays good, in the deregistration too
        parse_keepalive(agent._record(skew=LONGEST_SKEW, down=down))
    for depth, good in ((31, True), (32, False)):
        path.write_text("[" * depth + "]" * depth, encoding="utf-8")
        file.refresh(agent.update)
        assert (file.error is None) == good
    assert agent.status.n == 2
    parse_keepalive(agent._record(skew=0))


def test_the_size_that_counts_is_that_of_the_record(path: Path, taken: Taken) -> None:
    pretty = json.dumps([1] * 20_000, indent=4)
    assert len(pretty) > MAX_BYTES
    path.write_text(pretty, encoding="utf-8")
    assert taken.look() == [[1] * 20_000]
