"""The client's side of an HTTP/2 connection (RFC 9113), as a state machine. Pure.

`receive` takes bytes and returns events; `take` returns the bytes to send. There is no I/O and no
clock, and nothing of gRPC. `docs/decisions/0174` has the reasons and the figures.

**Batches.** `send` only appends to its stream. `take` makes frames of what came together: a
thousand small messages are one frame.

**Flow control.** What the peer's windows do not allow stays here. The peer may send `WINDOW` bytes
on each stream before its reader returns them by `credit`. The window of the connection is returned
as bytes come: a slow reader of one stream holds up no other one.

**Bounds.** The peer may be an enemy: the size of a frame, of a block of headers and of what is
unread are bounded, and whatever breaks the rules raises `Http2Error`, which ends the connection.
What comes for a stream that has ended is ignored.
"""

from dataclasses import dataclass, field
from typing import Final

from kontrol.store.etcd import frames
from kontrol.store.etcd.frames import (
    HEAD_SIZE,
    MAX_FRAME,
    Code,
    DataReceived,
    Event,
    GoneAway,
    HeadersReceived,
    Http2Error,
    Pong,
    Ready,
    StreamReset,
    head,
    sized,
    unpadded,
)
from kontrol.store.etcd.hpack import MAX_LIST, Decoder, HpackError

MAX_BLOCK = 64 * 1024  # bytes of a block of headers, as sent
WINDOW = 1 << 20  # bytes that the peer may send on a stream before they are read
_CONNECTION_WINDOW = 1 << 24
_MOST_WINDOW = (1 << 31) - 1
_FIRST_WINDOW = 65_535  # of a connection and, before SETTINGS, of a stream
_LAST_STREAM = (1 << 31) - 1
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS: Final = (
    (frames.ENABLE_PUSH, 0),
    (frames.INITIAL_WINDOW, WINDOW),
    (frames.MAX_HEADER_LIST, MAX_LIST),
)


@dataclass(slots=True)
class _Stream:
    window: int  # bytes that we may send
    unread: int = 0  # bytes received, and not returned by `credit`
    owed: int = 0  # bytes read, for which the peer has had no WINDOW_UPDATE
    waiting: bytearray = field(default_factory=bytearray)
    ending: bool = False  # the end follows what is waiting
    ended: bool = False  # our half is closed


class Http2:
    """One connection. After an `Http2Error` only `take` may be called."""

    def __init__(self, first: int = 1) -> None:
        """`first` is the id of the first stream, which is odd."""
        settings = b"".join(frames.SETTING.pack(*each) for each in _SETTINGS)
        self._out = bytearray(_PREFACE + head(len(settings), frames.SETTINGS) + settings)
        self._grow(0, _CONNECTION_WINDOW - _FIRST_WINDOW)
        self._received = b""  # the beginning of a frame
        self._block: tuple[int, bytearray, bool] | None = None  # headers that go on
        self._decoder = Decoder()
        self._streams: dict[int, _Stream] = {}
        self._sending: dict[int, _Stream] = {}  # those with something waiting
        self._next = first
        self._ready = False
        self._going_away = False
        self._window = _FIRST_WINDOW  # bytes that we may send on all streams
        self._stream_window = _FIRST_WINDOW  # of a new stream
        self._owed = 0
        self._most_streams = _LAST_STREAM

    @property
    def open_streams(self) -> int:
        """The streams that have not ended."""
        return len(self._streams)

    @property
    def sends(self) -> bool:
        """Whether `take` may have bytes to send."""
        return bool(self._out or self._sending)

    @property
    def accepts(self) -> bool:
        """Whether this connection may ever get another stream."""
        return not self._going_away and self._next <= _LAST_STREAM

    @property
    def room(self) -> int:
        """How many more streams the peer allows at present."""
        return self._most_streams - len(self._streams)

    def open(self, block: bytes) -> int:
        """Open a stream with a block of headers, at most a frame's; returns its id.

        The caller looked at `accepts` and `room`.
        """
        stream, self._next = self._next, self._next + 2
        self._streams[stream] = _Stream(self._stream_window)
        self._out += head(len(block), frames.HEADERS, frames.END_HEADERS, stream) + block
        return stream

    def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Queue bytes, and the end of our half; nothing if the stream has ended."""
        if (state := self._streams.get(stream)) is not None:
            state.waiting += data
            state.ending |= end
            self._sending[stream] = state

    def credit(self, stream: int, size: int) -> None:
        """Say that `size` bytes of a stream were read: the peer may send as many more."""
        if (state := self._streams.get(stream)) is not None:
            state.unread -= size
            state.owed += size
            if state.owed >= WINDOW // 2:
                self._grow(stream, state.owed)
                state.owed = 0

    def reset(self, stream: int, code: Code = Code.CANCEL) -> None:
        """Give a stream up; nothing if it has ended."""
        if self._forget(stream):
            self._out += head(4, frames.RST_STREAM, 0, stream) + frames.NUMBER.pack(code)

    def ping(self) -> None:
        """Ask for a `Pong`."""
        self._out += head(8, frames.PING) + bytes(8)

    def go_away(self, code: Code = Code.NO_ERROR) -> None:
        """Say that the connection ends."""
        self._going_away = True
        self._out += head(8, frames.GOAWAY) + bytes(4) + frames.NUMBER.pack(code)

    def take(self) -> bytes:
        """Return the bytes to send, and forget them."""
        for stream in list(self._sending):
            self._pump(stream, self._sending[stream])
        out = bytes(self._out)
        self._out.clear()
        return out

    def _pump(self, stream: int, state: _Stream) -> None:
        """Make frames of what is waiting, as far as the windows allow."""
        waiting, sent = state.waiting, 0
        while True:
            size = min(len(waiting) - sent, state.window, self._window, MAX_FRAME)
            end = state.ending and sent + max(size, 0) == len(waiting)
            if size <= 0 and not end:
                break
            size = max(size, 0)
            self._out += head(size, frames.DATA, frames.END_STREAM if end else 0, stream)
            self._out += waiting[sent : sent + size]
            sent += size
            state.window -= size
            self._window -= size
            if end:
                state.ending, state.ended = False, True
                break
        del waiting[:sent]
        if not waiting:
            del self._sending[stream]

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes of the peer's. Raises `Http2Error`."""
        if self._received:
            data = self._received + data
        events: list[Event] = []
        at, size = 0, len(data)
        while size - at >= HEAD_SIZE:
            high, low, kind, flags, stream = frames.HEAD.unpack_from(data, at)
            length = high << 8 | low
            if length > MAX_FRAME:
                raise Http2Error(
                    f"a frame of {length} bytes, and at most {MAX_FRAME} are read",
                    Code.FRAME_SIZE_ERROR,
                )
            end = at + HEAD_SIZE + length
            if end > size:
                break
            self._frame(kind, flags, stream & _LAST_STREAM, data[at + HEAD_SIZE : end], events)
            at = end
        self._received = data[at:]
        return events

    def _frame(
        self, kind: int, flags: int, stream: int, payload: bytes, events: list[Event]
    ) -> None:
        if not self._ready and kind != frames.SETTINGS:
            raise Http2Error("the first frame is not SETTINGS")
        if self._block is not None and (kind != frames.CONTINUATION or stream != self._block[0]):
            raise Http2Error("a block of headers is not continued")
        handle = self._HANDLERS.get(kind)
        if handle is not None:  # one that is not known has to be ignored
            handle(self, flags, stream, payload, events)

    def _data(self, flags: int, stream: int, payload: bytes, events: list[Event]) -> None:
        size = len(payload)
        self._owed += size
        if self._owed >= _CONNECTION_WINDOW // 2:
            self._grow(0, self._owed)
            self._owed = 0
        state = self._streams.get(stream)
        if state is None:
            self._known(stream)
            return
        state.unread += size
        if state.unread + state.owed > WINDOW:
            raise Http2Error("more data than the window allows", Code.FLOW_CONTROL_ERROR)
        if flags & frames.PADDED:
            payload = unpadded(flags, payload)
            self.credit(stream, size - len(payload))
        ended = bool(flags & frames.END_STREAM)
        events.append(DataReceived(stream, payload, ended))
        if ended:
            self._peer_ended(stream)

    def _headers(self, flags: int, stream: int, payload: bytes, events: list[Event]) -> None:
        self._known(stream)
        payload = unpadded(flags, payload)
        if flags & frames.PRIORITIZED:
            payload = payload[5:]
        self._block = stream, bytearray(), bool(flags & frames.END_STREAM)
        self._more_headers(flags, payload, events)

    def _continuation(self, flags: int, _: int, payload: bytes, events: list[Event]) -> None:
        if self._block is None:
            raise Http2Error("a continuation of no headers")
        self._more_headers(flags, payload, events)

    def _more_headers(self, flags: int, payload: bytes, events: list[Event]) -> None:
        assert self._block is not None, "no block"  # noqa: S101 - an invariant
        stream, block, ended = self._block
        block += payload
        if len(block) > MAX_BLOCK:
            raise Http2Error(f"headers of more than {MAX_BLOCK} bytes")
        if not flags & frames.END_HEADERS:
            return
        self._block = None
        try:
            headers = self._decoder.decode(bytes(block))
        except HpackError as error:
            raise Http2Error(str(error), Code.COMPRESSION_ERROR) from None
        if stream in self._streams:
            events.append(HeadersReceived(stream, headers, ended))
            if ended:
                self._peer_ended(stream)

    def _peer_ended(self, stream: int) -> None:
        """The peer said all: what we have left to say is of no use."""
        if self._streams[stream].ended:
            self._forget(stream)
        else:
            self.reset(stream)

    def _forget(self, stream: int) -> bool:
        self._sending.pop(stream, None)
        return self._streams.pop(stream, None) is not None

    def _known(self, stream: int) -> None:
        """Raise if this is not a stream that we opened, ended or not."""
        if not stream & 1 or stream >= self._next:
            raise Http2Error(f"a frame for stream {stream}, which was never opened")

    def _rst_stream(self, _: int, stream: int, payload: bytes, events: list[Event]) -> None:
        self._known(stream)
        sized(payload, 4)
        if self._forget(stream):
            events.append(StreamReset(stream, frames.NUMBER.unpack(payload)[0]))

    def _pong(self, flags: int, _: int, payload: bytes, events: list[Event]) -> None:
        sized(payload, 8)
        if flags & frames.ACK:
            events.append(Pong())
        else:
            self._out += head(8, frames.PING, frames.ACK) + payload

    def _goaway(self, _: int, __: int, payload: bytes, events: list[Event]) -> None:
        if len(payload) < 8:
            raise Http2Error("a frame is too short", Code.FRAME_SIZE_ERROR)
        last, code = frames.TWO_NUMBERS.unpack_from(payload)
        self._going_away = True
        text = payload[8:264].decode("utf-8", "replace")
        events.append(GoneAway(last & _LAST_STREAM, code, text))

    def _push_promise(self, _: int, __: int, ___: bytes, ____: list[Event]) -> None:
        raise Http2Error("the peer pushes, which it was told not to")

    def _window_update(self, _: int, stream: int, payload: bytes, __: list[Event]) -> None:
        sized(payload, 4)
        size = frames.NUMBER.unpack(payload)[0] & _MOST_WINDOW
        if not stream:
            self._window = window = self._window + size
        elif (state := self._streams.get(stream)) is not None:
            state.window = window = state.window + size
        else:
            self._known(stream)
            return
        if not size or window > _MOST_WINDOW:
            raise Http2Error(f"a window grows by {size}", Code.FLOW_CONTROL_ERROR)

    def _settings(self, flags: int, _: int, payload: bytes, events: list[Event]) -> None:
        if flags & frames.ACK:
            sized(payload, 0)
            return
        if len(payload) % 6:
            raise Http2Error("a frame has a part of a setting", Code.FRAME_SIZE_ERROR)
        for name, value in frames.SETTING.iter_unpack(payload):
            if name == frames.MAX_STREAMS:
                self._most_streams = value
            elif name == frames.INITIAL_WINDOW:
                if value > _MOST_WINDOW:
                    why = f"a window of {value} bytes, more than {_MOST_WINDOW}"
                    raise Http2Error(why, Code.FLOW_CONTROL_ERROR)
                change, self._stream_window = value - self._stream_window, value
                for state in self._streams.values():
                    state.window += change
                    if state.window > _MOST_WINDOW:
                        raise Http2Error(f"a window grows by {change}", Code.FLOW_CONTROL_ERROR)
        self._out += head(0, frames.SETTINGS, frames.ACK)
        if not self._ready:
            self._ready = True
            events.append(Ready())

    def _grow(self, stream: int, size: int) -> None:
        self._out += head(4, frames.WINDOW_UPDATE, 0, stream) + frames.NUMBER.pack(size)

    _HANDLERS: Final = {
        frames.DATA: _data,
        frames.HEADERS: _headers,
        frames.RST_STREAM: _rst_stream,
        frames.SETTINGS: _settings,
        frames.PUSH_PROMISE: _push_promise,
        frames.PING: _pong,
        frames.GOAWAY: _goaway,
        frames.WINDOW_UPDATE: _window_update,
        frames.CONTINUATION: _continuation,
    }
