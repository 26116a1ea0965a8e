"""The log file: it rotates, and survives a disk that is full for a while."""

import logging
import os
from pathlib import Path

import pytest

from automaton import log as logs
from automaton.log import FileLog
from automaton.script import Output


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("automaton", logging.INFO, "", 0, text, (), None)


def test_it_rotates_and_keeps_three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_BYTES", 100)
    path = tmp_path / "log"
    handler = FileLog(path)
    for number in range(50):
        handler.emit(record(f"{number:02} " + "x" * 40))
    handler.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1", "log.2", "log.3"]
    kept = "".join((tmp_path / name).read_text() for name in ("log.3", "log.2", "log.1", "log"))
    assert [line.split()[0] for line in kept.splitlines()] == [f"{n:02}" for n in range(42, 50)]


def test_what_a_full_disk_lost_is_said_when_there_is_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log"
    handler = FileLog(path)
    write, full = os.write, True

    def writing(fd: int, data: bytes) -> int:
        if full and fd != 2:
            raise OSError(28, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(os, "write", writing)
    handler.emit(record("one"))
    handler.emit(record("two"))
    full = False
    handler.emit(record("three"))
    handler.close()
    assert path.read_text() == "(the log could not be written: 2 records are lost)\nthree\n"
    assert capfd.readouterr().err.count("No space left on device") == 1


def test_bytes_that_are_no_text_do_not_stop_the_log(tmp_path: Path) -> None:
    handler = FileLog(tmp_path / "log")
    handler.emit(record("a \udcff b"))
    handler.close()
    assert (tmp_path / "log").read_bytes() == b"a \\udcff b\n"


async def test_last_words_are_there_when_the_script_has_ended() -> None:
    output = Output("script")
    os.write(output.descriptor, b"last words")
    output.flush()
    assert output.tail == "last words"
    output.detach()
    output.close()
