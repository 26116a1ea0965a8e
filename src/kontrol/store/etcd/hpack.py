"""HPACK, the compression of HTTP/2's headers (RFC 7541), as far as a client of gRPC needs it. Pure.

The decoder is complete, and bounded: a block of a few bytes can otherwise stand for megabytes. What
is sent is not compressed: a few short headers, which are encoded once for thousands of calls, and
of which no proxy may keep the token (section 7.1.3).

The code of appendix B is canonical: it follows from the lengths of its words alone.
"""

from collections import deque
from typing import Final

MAX_LIST = 64 * 1024  # bytes of one list of headers, decoded, with 32 more for each header
TABLE_SIZE = 4096  # bytes of the dynamic table, the default that a peer may rely on

Headers = list[tuple[bytes, bytes]]


class HpackError(ValueError):
    """The block breaks the rules or a bound. The connection's headers can no longer be read."""


_STATIC: Final = tuple(
    (name.encode(), value.encode())
    for name, _, value in (
        line.partition("=")
        for line in """\
:authority
:method=GET
:method=POST
:path=/
:path=/index.html
:scheme=http
:scheme=https
:status=200
:status=204
:status=206
:status=304
:status=400
:status=404
:status=500
accept-charset
accept-encoding=gzip, deflate
accept-language
accept-ranges
accept
access-control-allow-origin
age
allow
authorization
cache-control
content-disposition
content-encoding
content-language
content-length
content-location
content-range
content-type
cookie
date
etag
expect
expires
from
host
if-match
if-modified-since
if-none-match
if-range
if-unmodified-since
last-modified
link
location
max-forwards
proxy-authenticate
proxy-authorization
range
referer
refresh
retry-after
server
set-cookie
strict-transport-security
transfer-encoding
user-agent
vary
via
www-authenticate""".splitlines()
    )
)

# The length in bits of the word for each byte, and for the end of the string: a is 5, z is 30.
_LENGTHS: Final = (
    "isxxxxxxxtzxxzxxxxxxxxzxxxxxxxxxbffhibdgffdgdbbbaaabbbbbbbcdkbhfibcccccccccccccccccccc"
    "ccdcdioijbkabababbbaccbbbabcbaabccccckgjixprpprrrsrssssststtrstssssqrsrsstrqprrssqsrrt"
    "qrssqqrqsrssprrrsrrsvvporsruvvvwwvtuoqvwwvwtqqvvxwwwptpqrqqsrruuttvsvwvvwwwwwxwwwwwvz"
)


def _words() -> dict[int, int]:
    """Return the symbol of each word. A word has a 1 before its bits, so its length is known."""
    words, code, before = {}, 0, 0
    lengths = [ord(letter) - 92 for letter in _LENGTHS]
    for symbol in sorted(range(257), key=lambda symbol: (lengths[symbol], symbol)):
        length = lengths[symbol]
        code <<= length - before
        words[1 << length | code] = symbol
        code, before = code + 1, length
    return words


_WORDS: Final = _words()
_END = 256
_LONGEST = 30  # bits of a word


def _expand(data: bytes) -> bytes:
    """Decode a string that is Huffman-coded (section 5.2)."""
    text, word = bytearray(), 1
    for byte in data:
        for shift in range(7, -1, -1):
            word = word << 1 | (byte >> shift & 1)
            symbol = _WORDS.get(word)
            if symbol is not None:
                if symbol == _END:
                    raise HpackError("a header has the end of its string within it")
                text.append(symbol)
                word = 1
        if word >> _LONGEST > 1:
            raise HpackError("a header has a word that is not in the code")
    if word.bit_length() > 8 or word & (word + 1):  # the rest is padding: ones, less than a byte
        raise HpackError("a header is padded wrongly")
    return bytes(text)


class Decoder:
    """The decoder of one connection, and its dynamic table."""

    def __init__(self) -> None:
        self._table: deque[tuple[bytes, bytes]] = deque()
        self._size = 0
        self._most = TABLE_SIZE

    def decode(self, block: bytes) -> Headers:
        """Decode one block. Raises `HpackError`, after which the connection must end."""
        try:
            return self._decode(block)
        except IndexError:
            raise HpackError("a block of headers ends within a header") from None

    def _decode(self, block: bytes) -> Headers:
        headers: Headers = []
        at = total = 0
        while at < len(block):
            first = block[at]
            if first & 0x80:  # an entry of a table
                index, at = _integer(block, at, 7)
                header = self._entry(index)
            elif first & 0xE0 == 0x20:  # another size of the table
                if headers:
                    raise HpackError("the size of the table changes within a block")
                size, at = _integer(block, at, 5)
                if size > TABLE_SIZE:
                    raise HpackError(f"a table of {size} bytes, and {TABLE_SIZE} are allowed")
                self._most = size
                self._evict()
                continue
            else:
                index, at = _integer(block, at, 6 if first & 0x40 else 4)
                if index:
                    name = self._entry(index)[0]
                else:
                    name, at = _string(block, at)
                value, at = _string(block, at)
                header = name, value
                if first & 0x40:
                    self._add(header)
            total += _size(header)
            if total > MAX_LIST:
                raise HpackError(f"headers of more than {MAX_LIST} bytes")
            headers.append(header)
        return headers

    def _entry(self, index: int) -> tuple[bytes, bytes]:
        if not 1 <= index <= len(_STATIC) + len(self._table):
            raise HpackError(f"no table has an entry {index}")
        if index <= len(_STATIC):
            return _STATIC[index - 1]
        return self._table[index - len(_STATIC) - 1]

    def _add(self, header: tuple[bytes, bytes]) -> None:
        self._table.appendleft(header)
        self._size += _size(header)
        self._evict()

    def _evict(self) -> None:
        while self._size > self._most:
            self._size -= _size(self._table.pop())


def _size(header: tuple[bytes, bytes]) -> int:
    """Return the size of an entry as section 4.1 counts it."""
    return len(header[0]) + len(header[1]) + 32


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """Decode an integer with a prefix of `bits` (section 5.1); returns it, and where it ends."""
    most = (1 << bits) - 1
    value, at = block[at] & most, at + 1
    if value < most:
        return value, at
    for shift in range(0, 28, 7):
        byte, at = block[at], at + 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise HpackError("a header has a number of more than four bytes")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    coded = block[at] & 0x80
    length, at = _integer(block, at, 7)
    end = at + length
    if end > len(block):
        raise HpackError("a block of headers ends within a string")
    text = block[at:end]
    return (_expand(text) if coded else text), end


def encode(*headers: tuple[str, str]) -> bytes:
    """Return a block of these headers, never to be indexed (section 6.2.3)."""
    block = bytearray()
    for header in headers:
        block.append(0x10)
        for text in header:
            data = text.encode()
            block += _length(len(data)) + data
    return bytes(block)


def _length(value: int) -> bytes:
    return bytes((value,)) if value < 0x7F else b"\x7f" + varint(value - 0x7F)


def varint(value: int) -> bytes:
    """Return a number of 0 or more in groups of 7 bits, the lowest first, as protobuf has it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
