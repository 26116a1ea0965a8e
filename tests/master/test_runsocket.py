"""`kontrol publish` within a run: real processes, and the socket that they use."""

import asyncio
import json
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
from tests.master.test_callback_runs import (
    Build,
    build,  # noqa: F401 - a fixture, as are these
    pipe,  # noqa: F401
    request,
    scratch,  # noqa: F401
    soon,
)

from kontrol.ensemble.canonical import JSON
from kontrol.master.records.published import NotPublished
from kontrol.master.runsocket import MOST_CLIENTS, RUN_SOCKET, serving

KONTROL = f"{sys.executable} -m kontrol"


class Board:
    """What was published."""

    def __init__(self) -> None:
        self.documents: dict[str, JSON] = {}
        self.refuse = ""

    async def publish(self, key: str, document: JSON, *, remove: bool = False) -> int:
        if self.refuse:
            raise NotPublished(self.refuse)
        if remove:
            self.documents.pop(key, None)
        else:
            self.documents[key] = document
        return 7


async def kontrol(
    *words: str,
    stdin: bytes = b"",
    environ: Mapping[str, str] = MappingProxyType({}),
) -> tuple[int, str]:
    """Run `kontrol publish`; returns the exit status, and what it wrote, all to stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kontrol", "publish", *words),
        env={"PATH": os.environ["PATH"], **environ},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(stdin)
    assert out == b""  # it would be the state
    assert process.returncode is not None
    return process.returncode, err.decode()


async def test_a_callback_publishes(build: Build, tmp_path: Path) -> None:  # noqa: F811
    board = Board()
    large = tmp_path / "large.json"
    large.write_text(json.dumps(["x" * 1000] * 300))
    subject = build(
        f"""
        {KONTROL} publish a '{{"b": [1]}}' && {KONTROL} publish large --file {large} &&
        echo '"piped"' | {KONTROL} publish in - && {KONTROL} publish also --file - < {large} &&
        {KONTROL} publish also --remove && {KONTROL} publish number -- -5 &&
        echo '{{"state": 1}}'
        """
    )
    outcome = await subject.run(replace(request(), publish=board.publish), soon())
    assert outcome.ok, outcome
    assert outcome.state == b'{"state": 1}'
    assert board.documents == {
        "a": {"b": [1]},
        "large": json.loads(large.read_text()),
        "in": "piped",
        "number": -5,
    }


async def test_a_callback_that_is_not_to_publish_has_no_socket(build: Build) -> None:  # noqa: F811
    subject = build('echo "\\"${RUN_SOCKET-none}\\""', environ={"RUN_SOCKET": "stale"})
    assert (await subject.run(request(), soon())).state == b'"none"'


async def test_outside_of_a_run_it_says_what_it_needs() -> None:
    status, said = await kontrol("a", "1")
    assert status == 2
    assert "this is no run of the callback ($RUN_SOCKET is not set)" in said
    assert "`kontrol run-now`" in said


async def test_when_the_run_has_ended_it_is_refused(tmp_path: Path) -> None:
    gone = {RUN_SOCKET: str(tmp_path / "gone" / "run.sock")}
    status, said = await kontrol("a", "1", environ=gone)
    assert (status, "this run has ended" in said) == (5, True)
    async with serving(tmp_path, Board().publish) as environ:
        assert (tmp_path / "run.sock").is_socket()
    status, said = await kontrol("a", "1", environ=environ)
    assert (status, "this run has ended" in said) == (5, True)


@pytest.mark.parametrize(
    ("words", "stdin", "why"),
    [
        (["a", "{"], b"", "the document is not JSON: line 1 column 2"),
        (["a", "-"], b"", "the document is not JSON"),
        (["a", "-"], b"\xff", "not UTF-8"),
        (["a", "-"], b'"' + b"x" * (10 << 20) + b'"', "more than 524288 bytes, the limit"),
    ],
    ids=["cut", "empty", "bytes", "10 MB"],
)
async def test_what_is_no_document_is_refused_by_name(
    tmp_path: Path, words: list[str], stdin: bytes, why: str
) -> None:
    board = Board()
    async with serving(tmp_path, board.publish) as environ:
        status, said = await kontrol(*words, stdin=stdin, environ=environ)
        assert status == 5, said
        assert why in said
        assert not board.documents
        board.refuse = "this master does not lead any more: term 7 ended"
        status, said = await kontrol("a", "1", environ=environ)
        assert (status, board.refuse in said) == (5, True)


async def test_wrong_words(tmp_path: Path) -> None:
    async with serving(tmp_path, Board().publish) as environ:
        for words in (["a"], ["a", "1", "--remove"], ["a", "--file", "x", "--remove"]):
            assert (await kontrol(*words, environ=environ))[0] == 2
        status, said = await kontrol("a", "--file", str(tmp_path / "none"), environ=environ)
        assert (status, "No such file" in said) == (2, True)


async def test_no_answer_is_told_from_a_refusal(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "run.sock"))
        deaf.listen()
        environ = {RUN_SOCKET: str(tmp_path / "run.sock")}
        status, said = await kontrol("a", "1", "--timeout", "0.2", environ=environ)
        assert (status, "no answer in 0.2 s" in said) == (4, True)


async def test_what_is_no_request_is_refused_and_clients_are_bounded(tmp_path: Path) -> None:
    async with serving(tmp_path, Board().publish) as environ:

        async def ask(raw: bytes) -> bytes:
            reader, writer = await asyncio.open_unix_connection(environ[RUN_SOCKET])
            writer.write(raw)
            writer.write_eof()
            answer = await reader.read()
            writer.close()
            return answer

        for raw in (b"", b"{}", b"\xff\n", b"[" * 5000, b'{"publish":7}\n1', b'{"other":"x"}\n'):
            assert "refused" in json.loads(await ask(raw))
        idle = [await asyncio.open_unix_connection(environ[RUN_SOCKET]) for _ in range(60)]
        for _, writer in idle[: -MOST_CLIENTS // 2]:
            writer.close()
        assert json.loads(await ask(b'{"publish":"a"}\n1')) == {"version": 7}
        for _, writer in idle:
            writer.close()


async def test_a_path_that_is_too_long_for_a_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    board = Board()
    async with serving(folder, board.publish) as environ:
        assert (await kontrol("a", "1", environ=environ))[0] == 0
    assert board.documents == {"a": 1}


async def test_a_socket_that_cannot_be_made_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path / "none", Board().publish) as environ:
        assert environ == {}
    assert "this run cannot publish" in caplog.text
