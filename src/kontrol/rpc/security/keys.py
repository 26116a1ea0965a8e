"""The keys of a cluster: a folder of CURVE keys of three kinds, as `KONTROL_KEYS` names it.

`master.secret`, `agent.secret` and `operator.secret` hold one's own secret key, each only where it
is needed. `masters`, `agents` and `operators` list the public keys that are accepted, so that there
can be several while keys are being rotated. All are UTF-8 text: one key of 40 characters (Z85) per
line, with any remark after a space; empty lines and lines that begin with `#` are ignored (keys
made here never begin with one). A public key has one kind, which is what its holder may do.

A folder changes while it is used: mounted Secrets are replaced as a whole, behind symbolic links.
`Keyring.refresh` compares the files' metadata and reads them again if needed: it is called when a
peer appears and, in a server, when a file of `Keyring.paths` has changed, so that nothing polls.
Invariant: what is in force is always one whole valid state of the folder, the last good one if what
is there now is none. Secrets are in no error, log or representation.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from kontrol.reloading import ReloadingFile
from kontrol.rpc.errors import RpcError
from kontrol.rpc.security import z85
from kontrol.settings.private import exposed

if TYPE_CHECKING:
    from kontrol.rpc.zmtp.curve import KeyPair

_log = logging.getLogger(__name__)

Kind = Literal["master", "agent", "operator"]

ServerKind = Literal["master", "agent"]
"""The kinds that listen."""

KINDS: tuple[Kind, ...] = ("master", "agent", "operator")

_LENGTH = 40  # characters of a key
_SHOWN = 8


class KeysError(RpcError, ValueError):
    """A key that is missing or not valid; the message names the file and the fix."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A key pair, both as 40 characters of Z85."""

    public: str
    secret: str = field(repr=False)

    @classmethod
    def of(cls, secret: str) -> Self:
        """Return the pair of a secret key."""
        from kontrol.rpc.zmtp.curve import KeyPair  # libsodium is loaded where keys are used

        return cls(z85.encode(KeyPair.of(z85.decode(secret)).public), secret)

    def binary(self) -> "KeyPair":
        """Return the same keys, 32 bytes each."""
        from kontrol.rpc.zmtp.curve import KeyPair

        return KeyPair(z85.decode(self.public), z85.decode(self.secret))

    @classmethod
    def make(cls) -> Self:
        """Return a new one, neither of whose keys begins like a comment."""
        while True:
            pair = cls.of(z85.encode(os.urandom(32)))
            if not (pair.public.startswith("#") or pair.secret.startswith("#")):
                return pair


@dataclass(frozen=True, slots=True)
class Keys:
    """What a folder says: `own` pairs, and the kinds of the `accepted` public keys, in order."""

    own: Mapping[Kind, Pair]
    accepted: Mapping[str, Kind]


def secret_file(kind: Kind) -> str:
    """Return the name of the file of one's own secret key of that kind."""
    return f"{kind}.secret"


def list_file(kind: Kind) -> str:
    """Return the name of the list of accepted public keys of that kind."""
    return f"{kind}s"


FILES: tuple[str, ...] = (*map(secret_file, KINDS), *map(list_file, KINDS))


def fingerprint(public: str) -> str:
    """Return what logs show of a public key."""
    return public[:_SHOWN]


def parse_list(text: str, where: str) -> dict[str, str]:
    """Return the public keys in `text` with their remarks, in order. Raises `KeysError`."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split(None, 1)
        if not words or line.lstrip().startswith("#"):
            continue
        key = words[0]
        if not _is_public(key):
            raise KeysError(
                f"{where}, line {number}: {key!r:.60} is not a public key; expected 40 characters"
                " of Z85, as `kontrol keys show` prints them"
            )
        found[key] = words[1].strip() if len(words) > 1 else ""
    return found


def parse_secret(text: str, where: str) -> Pair:
    """Return the pair of the one secret key in `text`.

    Raises `KeysError`, which does not contain the text.
    """
    lines = [line.split() for line in text.splitlines() if not line.lstrip().startswith("#")]
    keys = [words[0] for words in lines if words]
    if len(keys) != 1 or _key(keys[0]) is None:
        raise KeysError(
            f"{where}: expected one secret key, 40 characters of Z85, and found "
            f"{len(keys) if len(keys) != 1 else 'something else'}; `kontrol keys make` makes one"
        )
    return Pair.of(keys[0])


def assemble(texts: Mapping[str, str], folder: Path) -> Keys:
    """Return what the files' `texts`, by name, say together. Raises `KeysError`."""
    own: dict[Kind, Pair] = {}
    accepted: dict[str, Kind] = {}
    for kind in KINDS:
        name = secret_file(kind)
        if name in texts:
            own[kind] = parse_secret(texts[name], str(folder / name))
        name = list_file(kind)
        for key in parse_list(texts.get(name, ""), str(folder / name)):
            if key in accepted:
                raise KeysError(
                    f"{folder / name}: {key} is in `{list_file(accepted[key])}` too: a key has one"
                    " kind; make another with `kontrol keys rotate`"
                )
            accepted[key] = kind
    return Keys(own, accepted)


class Keyring:
    """The keys in a folder, as they are now. Make it with `load`."""

    def __init__(self, folder: Path, keys: ReloadingFile[Keys]) -> None:
        self._folder = folder
        self._keys = keys

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read the folder; log a warning if others on this host can read a secret.

        Raises `KeysError`.
        """
        folder = Path(folder)
        keys = ReloadingFile(
            "KONTROL_KEYS",
            [folder / name for name in FILES],
            lambda: assemble(read(folder), folder),
            describe=_summary,
        )
        _warn(folder)
        return cls(folder, keys)

    def paths(self) -> list[Path]:
        """Return the paths of all files that there may be."""
        return [self._folder / name for name in FILES]

    def refresh(self) -> Keys:
        """Read the folder again if it has changed; return the keys in force, new ones if others.

        What cannot be used is logged, once, and changes nothing.
        """
        return self._keys.value

    def own(self, kind: Kind) -> Pair:
        """Return one's own pair of that kind. Raises `KeysError`."""
        pair = self._keys.last.own.get(kind)
        if pair is None:
            raise KeysError(
                f"{self._folder / secret_file(kind)}: there is no such file, and this process needs"
                f" the secret key of {_a(kind)}; `kontrol keys secret --kind {kind}` prints the"
                " Kubernetes Secret that has it"
            )
        return pair

    def accepted(self, *kinds: Kind) -> tuple[str, ...]:
        """Return the public keys of these kinds, kind by kind. Raises `KeysError` if none."""
        keys = self._keys.last.accepted
        found = tuple(key for kind in kinds for key in keys if keys[key] == kind)
        if not found:
            names = " or ".join(str(self._folder / list_file(kind)) for kind in kinds)
            raise KeysError(f"{names}: expected at least one public key, and found none")
        return found

    def kind(self, public: str) -> Kind | None:
        """Return the kind of an accepted public key."""
        return self._keys.last.accepted.get(public)

    def summary(self) -> str:
        """Return which public keys there are, and which are this process's own, for the log."""
        return _summary(self._keys.last)


def _summary(keys: Keys) -> str:
    own = ", ".join(f"{kind} {fingerprint(one.public)}" for kind, one in keys.own.items())
    lists: dict[Kind, list[str]] = {kind: [] for kind in KINDS}
    for key, kind in keys.accepted.items():
        lists[kind].append(fingerprint(key))
    accepted = (f"{list_file(kind)} {' '.join(names) or '-'}" for kind, names in lists.items())
    return f"own {own or '-'}; accepted {', '.join(accepted)}"


def _key(text: str) -> bytes | None:
    """Return the key that a text is, or None if it is none."""
    if len(text) != _LENGTH:
        return None
    try:
        return z85.decode(text)
    except ValueError:
        return None


def _is_public(text: str) -> bool:
    """Return whether a text is a public key, and not one that hides nothing."""
    from kontrol.rpc.zmtp.curve import is_public  # libsodium is loaded where keys are used

    key = _key(text)
    return key is not None and is_public(key)


def _a(kind: Kind) -> str:
    return f"an {kind}" if kind[0] in "ao" else f"a {kind}"


def read(folder: Path) -> dict[str, str]:
    """Return the texts of the files that there are. Raises `KeysError`."""
    if not folder.is_dir():
        raise KeysError(f"{folder}: expected a folder of keys; `kontrol keys make` makes one")
    texts: dict[str, str] = {}
    for name in FILES:
        try:
            texts[name] = (folder / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise KeysError(f"{folder / name} cannot be read: {reason}") from None
    return texts


def _warn(folder: Path) -> None:
    """Warn of secrets that others on this host can read."""
    for name in map(secret_file, KINDS):
        if (warning := exposed(folder / name)) is not None:
            _log.warning("%s", warning)
