"""What the hub hears of: processes, and starts of the callback with all that they were given."""

import asyncio
import json
import select
from asyncio import StreamWriter
from dataclasses import dataclass, field
from typing import Any

from kontrol.ensemble.canonical import JSON

Step = tuple[str, object]
Pod = dict[str, Any]


@dataclass(eq=False)
class Process:
    """A process that reported here."""

    pid: int
    pidfd: int | None
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def alive(self) -> bool:
        """Whether it runs at this moment; not what was last heard."""
        if self.pidfd is None:
            return False
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)


@dataclass(eq=False)
class Run(Process):
    """One start of the callback, with what it was given.

    `started` and `beat` (its last sign of life under `hold`) are seconds of the system's monotonic
    clock, as the callback itself read it.
    """

    started: float = 0.0
    beat: float = 0.0
    env: dict[str, str] = field(default_factory=dict)
    document: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str | None] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    writer: StreamWriter | None = None

    @property
    def doomed(self) -> bool:
        """Whether it was told to end otherwise than well."""
        return any(
            name in ("orphan", "hang") or (name == "exit" and status != 0)
            for name, status in self.steps
        )

    @property
    def number(self) -> int:
        return int(self.document["run"])

    @property
    def term(self) -> int:
        return int(self.document["term_id"])

    @property
    def digest(self) -> str:
        return str(self.document["hash"])

    @property
    def state(self) -> JSON:
        found: JSON = self.document.get("state")
        return found

    @property
    def pods(self) -> list[Pod]:
        found: list[Pod] = self.document["pods"]
        return found

    @property
    def ids(self) -> set[str]:
        return {pod["id"] for pod in self.pods}

    @property
    def seqs(self) -> dict[str, int]:
        """The number of each pod, by its id."""
        return {pod["id"]: pod["seq"] for pod in self.pods}

    def changes(self, kind: str) -> set[str]:
        """The ids of the pods that joined, left, were lost or changed."""
        return {row["id"] for row in self.document["changes"][kind]}

    def tell(self, *steps: Step) -> None:
        """Say what a callback under `hold` is to do next."""
        assert self.writer is not None
        self.steps = list(steps)
        self.writer.write(json.dumps(steps).encode("utf-8") + b"\n")
