"""Callbacks of examples, run in this process."""

import contextlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

EXAMPLES = Path(__file__).parents[2] / "examples"


class Callback:
    """A callback in Python."""

    def __init__(self, path: str) -> None:
        self._code = compile((EXAMPLES / path).read_text("utf-8"), path, "exec")

    def run(
        self,
        document: Mapping[str, Any],
        act: Callable[[Sequence[str]], str],
        environ: Mapping[str, str],
    ) -> str:
        """Run it; `act` gets each command that it starts, and returns the output of that.

        Returns its own output.
        """

        def start(words: Sequence[str], **_: object) -> SimpleNamespace:
            return SimpleNamespace(stdout=act(words))

        with (
            mock.patch("sys.stdin", io.StringIO(json.dumps(document))),
            mock.patch("subprocess.run", start),
            mock.patch.dict("os.environ", environ),
            contextlib.redirect_stdout(io.StringIO()) as wrote,
        ):
            exec(self._code, {})  # noqa: S102 - our own
        return wrote.getvalue()
