"""Calls that are answered by their bytes, without a channel, as their handler would have."""

import asyncio
import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.rpc.keyed import cluster
from tests.rpc.support import BEAT, DEADLINE, running, until

from kontrol.rpc.client import Client
from kontrol.rpc.errors import CallTimeout, Refused, RemoteError
from kontrol.rpc.events import Open
from kontrol.rpc.limits import Limits
from kontrol.rpc.security.keys import Keyring
from kontrol.rpc.server import Call, Server, restricted
from kontrol.rpc.wire import Codec, Malformed, Message, peek

CODEC = Codec(Limits())


class Short:
    """A server with a method `ping`, whose shortcut answers as the test says."""

    def __init__(self, *, keys: Keyring | None = None, limits: Limits | None = None) -> None:
        self.read: list[object] = []
        self.asked: list[bytes] = []
        self.answer: Callable[[], asyncio.Future[object] | None] = lambda: None

        async def ping(_call: Call, raw: object) -> object:
            self.read.append(raw)
            return "read"

        self.server = Server(
            {"ping": restricted(ping, "agent", insecure=True)},
            heartbeat=BEAT,
            limits=limits or Limits(),
            keys=keys,
            shortcuts={"ping": self._short},
        )

    def _short(self, text: bytes) -> asyncio.Future[object] | None:
        self.asked.append(text)
        return self.answer()

    def done(self, value: object) -> None:
        """Let the shortcut answer with this immediately, or raise it."""

        def answer() -> asyncio.Future[object]:
            future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
            if isinstance(value, Exception):
                future.set_exception(value)
            else:
                future.set_result(value)
            return future

        self.answer = answer


async def test_a_shortcut_answers_in_place_of_the_handler() -> None:
    short = Short()
    async with running(short.server) as port, Client("127.0.0.1", port) as client:
        short.done({"seq": 7})
        for text in ("{}", "\N{SNOWMAN}", "x" * 300, "x" * 70_000, ""):
            assert await client.call("ping", text, timeout=DEADLINE) == {"seq": 7}
            assert short.asked[-1] == text.encode()
        assert short.read == []


async def test_what_it_does_not_know_or_gives_back_is_handled() -> None:
    short = Short()
    async with running(short.server) as port, Client("127.0.0.1", port) as client:
        assert await client.call("ping", "a", timeout=DEADLINE) == "read"
        short.done(None)
        assert await client.call("ping", "b", timeout=DEADLINE) == "read"
        assert short.read == ["a", "b"]
        short.done("short")
        for other in (7, None, ["a"], {"a": 1}):  # no text
            assert await client.call("ping", other, timeout=DEADLINE) == "read"
        with pytest.raises(RemoteError, match="takes 1 argument, got 2"):
            await client.call("ping", "a", "b", timeout=DEADLINE)
        assert len(short.asked) == 2


async def test_its_errors_are_those_of_a_handler(caplog: pytest.LogCaptureFixture) -> None:
    short = Short()
    async with running(short.server) as port, Client("127.0.0.1", port) as client:
        for error, name in (
            (Refused("Unavailable", "no etcd"), "Unavailable"),
            (RuntimeError("a bug"), "InternalError"),
        ):
            short.done(error)
            with pytest.raises(RemoteError) as caught:
                await client.call("ping", "a", timeout=DEADLINE)
            assert caught.value.name == name
        assert "method ping failed" in caplog.text
        short.done(object())
        with pytest.raises(RemoteError) as caught:
            await client.call("ping", "a", timeout=DEADLINE)
        assert caught.value.name == "Unsendable"


async def test_calls_of_one_connection_are_counted_until_they_are_answered() -> None:
    short = Short(limits=Limits(calls_per_peer=3))
    futures: list[asyncio.Future[object]] = []

    def answer() -> asyncio.Future[object]:
        futures.append(asyncio.get_running_loop().create_future())
        return futures[-1]

    short.answer = answer
    async with running(short.server) as port, Client("127.0.0.1", port) as client:
        calls = [asyncio.create_task(client.call("ping", "a", timeout=DEADLINE)) for _ in range(3)]
        await until(lambda: len(futures) == 3)
        with pytest.raises(RemoteError, match="Busy"):
            await client.call("ping", "a", timeout=DEADLINE)
        for future in futures:
            future.set_result(1)
        assert await asyncio.gather(*calls) == [1, 1, 1]
        short.done(2)
        assert await client.call("ping", "a", timeout=DEADLINE) == 2


@pytest.mark.parametrize("error", [None, Refused("Unavailable", "not in time")])
async def test_an_answer_for_a_connection_that_is_over_is_dropped(
    error: Refused | None, caplog: pytest.LogCaptureFixture
) -> None:
    short = Short()
    answers: list[asyncio.Future[object]] = [asyncio.get_running_loop().create_future()]
    short.answer = lambda: answers[0]
    async with running(short.server) as port:
        async with Client("127.0.0.1", port) as client:
            with suppress(CallTimeout):
                await client.call("ping", "a", timeout=0.2)
        assert short.asked == [b"a"]
        await asyncio.sleep(0)
        peers = short.server._peers
        assert peers is not None
        await until(lambda: not tuple(peers.roster))
        if error is None:
            answers[0].set_result(None)
        else:
            answers[0].set_exception(error)
        await asyncio.sleep(0)
        assert short.read == []
    answers.clear()
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_a_caller_that_may_not_call_gets_no_answer_of_a_shortcut(tmp_path: Path) -> None:
    keys = Keyring.load(cluster(tmp_path / "keys"))
    short = Short(keys=keys)
    short.done("short")
    async with running(short.server) as port:
        async with Client("127.0.0.1", port, keys=keys, as_="agent", to=("master",)) as client:
            assert await client.call("ping", "a", timeout=DEADLINE) == "short"
        async with Client("127.0.0.1", port, keys=keys, as_="operator", to=("master",)) as client:
            with pytest.raises(RemoteError, match="Forbidden"):
                await client.call("ping", "a", timeout=DEADLINE)
    assert len(short.asked) == 1


TEXTS = st.one_of(st.text(max_size=300), st.binary(max_size=300))


@given(
    st.text(st.characters(codec="ascii"), max_size=255), st.sampled_from(["ping", "pods"]), TEXTS
)
def test_a_call_with_one_text_is_seen_as_the_codec_reads_it(
    id_: str, name: str, text: str | bytes
) -> None:
    frame = CODEC.encode(Message(id_, None, Open(name, (text,))))
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    assert peek(frame) == (id_, name, raw)


VALUES = st.recursive(
    st.one_of(TEXTS, st.integers(-5, 5), st.none(), st.booleans()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=2)),
    max_leaves=5,
)
HEADERS = st.one_of(
    st.builds(lambda i, v: {"message_id": i, "v": v}, VALUES, st.sampled_from([3, 2, "3"])),
    st.builds(lambda i: {"v": 3, "message_id": i}, TEXTS),
    st.builds(lambda i: {"message_id": i, "v": 3, "response_to": i}, TEXTS),
)


@given(HEADERS, VALUES, VALUES, st.data())
def test_whatever_is_seen_is_what_the_codec_reads(
    header: dict[str, object], name: object, args: object, data: st.DataObject
) -> None:
    frame = bytearray(b"\x93" + b"".join(map(msgpack.packb, (header, name, args))))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(frame) - 1))
        kind = data.draw(st.sampled_from(["cut", "flip", "add"]))
        if kind == "cut":
            del frame[at:]
        elif kind == "flip":
            frame[at] = data.draw(st.integers(0, 255))
        else:
            frame[at:at] = data.draw(st.binary(max_size=4))
        if not frame:
            break
    seen = peek(bytes(frame))
    if seen is None:
        return
    id_, method, raw = seen
    message = CODEC.decode(bytes(frame))
    text: str | bytes = raw
    with suppress(UnicodeDecodeError):
        text = raw.decode()
    assert message == Message(id_, None, Open(method, (text,)))


@given(st.binary(max_size=80))
def test_any_bytes_after_the_beginning_of_a_call_are_seen_or_not(rest: bytes) -> None:
    frame = b"\x93\x82\xaamessage_id" + rest
    if peek(frame) is not None:
        try:
            CODEC.decode(frame)
        except Malformed as error:
            raise AssertionError("it is no event") from error
