"""What a script prints: read as it comes, at any size, so that no script ever waits for us.

Standard output and error share one pipe. What comes is logged in debug, many lines to a record; the
end of it is kept, so that a script that fails can say why in a log that is not in debug. The reader
lives as long as any process holds the pipe, which may be longer than the script.
"""

import asyncio
import logging
import os

TAIL = 4096
CHUNK = 65536

_log = logging.getLogger("automaton")


class Output:
    """A pipe that is read to its end. `descriptor` is the script's side, to be closed by `detach`.

    Raises `OSError` if there are no descriptors left.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self._tail = b""
        self._rest = b""
        self._loop = asyncio.get_running_loop()
        self._read_end, self.descriptor = os.pipe()
        os.set_blocking(self._read_end, False)
        self.open = True
        self._loop.add_reader(self._read_end, self._read)

    @property
    def tail(self) -> str:
        """The last of the output so far, at most `TAIL` bytes."""
        return self._tail.decode("utf-8", "replace").strip("\n")

    def detach(self) -> None:
        """Close our copy of the script's side, so that the end of the last writer is the end."""
        os.close(self.descriptor)

    def flush(self) -> None:
        """Log what has come up to now, also a line that is not finished."""
        for _ in range(16):  # a pipe's content; a background process may print without end
            if not self.open or not self._read():
                break
        self._emit(self._rest)
        self._rest = b""

    def close(self) -> None:
        """Stop reading."""
        if self.open:
            self.open = False
            self._loop.remove_reader(self._read_end)
            os.close(self._read_end)

    def _read(self) -> bool:
        """Take one chunk; return whether there was any. One at a time: others have a turn too."""
        try:
            data = os.read(self._read_end, CHUNK)
        except BlockingIOError:
            return False
        if not data:
            self._emit(self._rest)
            self._rest = b""
            self.close()
            return False
        self._tail = (self._tail + data)[-TAIL:]
        whole, newline, rest = (self._rest + data).rpartition(b"\n")
        if len(rest) > CHUNK:
            whole, rest = whole + newline + rest, b""
        self._emit(whole)
        self._rest = rest
        return True

    def _emit(self, data: bytes) -> None:
        if data and _log.isEnabledFor(logging.DEBUG):
            lines = data.decode("utf-8", "replace").rstrip("\n").replace("\n", "\n  . ")
            _log.debug("%s prints\n  . %s", self.label, lines)
