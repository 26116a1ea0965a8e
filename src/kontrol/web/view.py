"""What the endpoint needs of a master: a protocol, so that neither knows the other."""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from kontrol.ensemble.canonical import JSON
from kontrol.ensemble.desired import Expected

Document = dict[str, JSON]

OperatorAction = Literal["run", "release", "rollback", "forget"]


class View(Protocol):
    """A master as its operators see it: complete JSON values, which `redaction` reduces.

    A method that reads the store may raise one of the `outages` of `Web`.
    """

    async def status(self) -> Document:
        """Return the state of the tier, as `kontrol status` shows it."""
        ...

    async def pods(self, *, live: bool) -> list[Document]:
        """Return the ordered pods, as the callback sees them; `live`: with their live facts."""
        ...

    @property
    def digest(self) -> str:
        """The digest of those pods, in colon-separated hex pairs."""
        ...

    def leader(self) -> Document | None:
        """Return the leader's id, address, term and fingerprint; None while there is none."""
        ...

    async def state(self) -> Document:
        """Return `state`, and `run`, the run that returned it."""
        ...

    async def spec(self) -> Document | None:
        """Return `spec`, the desired state, `keys` and `revision`; None if it is damaged."""
        ...

    async def set_spec(
        self,
        key: str,
        value: bytes | None,
        by: str,
        *,
        expected: Expected | None = None,
        timeout: float = 10.0,
    ) -> Document:
        """Set a key of the desired state, or unset it with None; values are in canonical form.

        Returns `done`, `message`, `changed` and `refused`, the name of the refusal, empty without.
        """
        ...

    async def runs(self, limit: int) -> list[Document]:
        """Return the last entries of the ledger, the newest first."""
        ...

    async def run(self, number: int) -> Document | None:
        """Return one entry, with `state_kept`; None if there is none."""
        ...

    async def ask(
        self,
        kind: OperatorAction,
        by: str,
        *,
        run: int | None = None,
        pod: str = "",
        timeout: float = 10.0,
    ) -> Document:
        """Ask the leader for something, about `run` or `pod`; return `request`, `done`, `message`.

        `done` is false if the leader has not answered within `timeout` seconds; `refused` is true
        if it will not.
        """
        ...

    def ready(self) -> Sequence[Mapping[str, JSON]]:
        """Return what this master needs in order to serve: `name`, `ok` and `detail` of each."""
        ...
