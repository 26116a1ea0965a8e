"""Keeps the current state in a file, as JSON, for whoever reports it (a keepalive does).

A reader sees the old content or the new, never a part: each is written beside the file and moved
over it. The content is the state alone, so that entering the same state again changes nothing.
"""

import json
import os
from pathlib import Path


class Payload:
    """The file. A failure raises `OSError` and leaves the file as it was."""

    def __init__(self, path: str) -> None:
        self._path = Path(path).absolute()
        self._written: str | None = None

    def write(self, tag: str) -> None:
        """Say that the machine is in state `tag`."""
        if tag == self._written:
            return
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            beside.write_text(json.dumps({"state": tag}) + "\n", encoding="utf-8")
            beside.replace(self._path)
        finally:
            beside.unlink(missing_ok=True)
        self._written = tag
