"""A folder with all keys of a cluster, as its owner keeps it: made, rotated, split into Secrets.

Rotation is in three steps, between which what has changed is given to the processes; each step can
be repeated after a crash. The folder itself remembers how far it is: step 1 leaves
`KIND.secret.next` and a listed public key, step 2 puts it into use and marks the old public key as
retired, step 3 drops what is marked. At no moment is a key in use that has not been listed since
the step before; so a process that has the folder of this step or of the one before works with
all others (docs/decisions/0091).
"""

import base64
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kontrol.rpc.security.keys import (
    FILES,
    KINDS,
    KeysError,
    Kind,
    Pair,
    fingerprint,
    list_file,
    parse_list,
    parse_secret,
    read,
    secret_file,
)
from kontrol_common.files import replace_file

_RETIRED = "retired"
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")  # of Kubernetes' objects, RFC 1123

_WAIT = "when all have it (Kubernetes may take two minutes), take the next step"

NEEDS: Mapping[Kind, tuple[str, ...]] = {
    "master": ("master.secret", "masters", "agents", "operators"),
    "agent": ("agent.secret", "masters", "operators"),
    "operator": ("operator.secret", "masters", "agents"),
}
"""The files that a process of each kind needs, and no more."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a rotation: its number of three, what it did, and what is to be done next."""

    number: int
    done: str
    next: str


def make(folder: Path, today: str) -> list[str]:
    """Make the folder and all keys; return the names of the files. Raises `KeysError`."""
    there = [name for name in FILES if os.path.lexists(folder / name)]
    if there:
        raise KeysError(
            f"{folder} has {', '.join(there)} already, and nothing was changed: name another"
            " folder, or use `kontrol keys rotate`"
        )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for kind in KINDS:
            pair = Pair.make()
            _write(folder / secret_file(kind), f"{pair.secret}\n", 0o600)
            text = f"# Public keys of {kind}s: one per line, then any remark.\n"
            _write(folder / list_file(kind), f"{text}{pair.public} made {today}\n", 0o600)
    except OSError as error:
        raise KeysError(f"{error.filename or folder}: {error.strerror}") from None
    return list(FILES)


def rotate(folder: Path, kind: Kind, today: str) -> Step:
    """Take the next step of replacing the key of that kind. Raises `KeysError`."""
    texts = read(folder)
    listed, own = list_file(kind), secret_file(kind)
    waiting = folder / f"{own}.next"
    text = texts.get(listed, "")
    remarks = parse_list(text, str(folder / listed))
    if own not in texts:
        raise KeysError(f"{folder / own}: there is no such file, so there is nothing to rotate")
    old = parse_secret(texts[own], str(folder / own))
    try:
        if not waiting.exists():
            retired = [key for key, remark in remarks.items() if remark.startswith(_RETIRED)]
            if retired:
                _write(folder / listed, _without(text, retired), 0o600)
                return _third(kind, retired)
            _write(waiting, f"{Pair.make().secret}\n", 0o600)
        new = parse_secret(waiting.read_text(encoding="utf-8"), str(waiting))
        if new.public not in remarks:
            line_end = "" if not text or text.endswith("\n") else "\n"
            _write(folder / listed, f"{text}{line_end}{new.public} made {today}\n", 0o600)
            return _first(kind, new)
        _write(folder / listed, _marked(text, old.public, f"{_RETIRED} {today}"), 0o600)
        waiting.replace(folder / own)
    except OSError as error:
        raise KeysError(f"{error.filename or folder}: {error.strerror}") from None
    return _second(kind, old, new)


def manifest(folder: Path, kinds: Iterable[Kind], name: str, namespace: str | None) -> str:
    """Return a Kubernetes Secret, as YAML, of what processes of these kinds need.

    Raises `KeysError`.
    """
    for what, value in (("name", name), ("namespace", namespace)):
        if value is not None and not _NAME.fullmatch(value):
            raise KeysError(
                f"{what} {value!r:.60}: Kubernetes expects lower case letters, digits and hyphens"
            )
    texts = read(folder)
    lines = ["apiVersion: v1", "kind: Secret", "metadata:", f"  name: {name}"]
    if namespace is not None:
        lines.append(f"  namespace: {namespace}")
    lines += ["type: Opaque", "data:"]
    wanted = {file for kind in kinds for file in NEEDS[kind]}
    for file in sorted(wanted):
        if file not in texts:
            raise KeysError(f"{folder / file}: there is no such file; `kontrol keys make` makes it")
        data = base64.b64encode(texts[file].encode("utf-8")).decode("ascii")
        lines.append(f"  {file}: {data}")
    return "\n".join(lines) + "\n"


def _first(kind: Kind, new: Pair) -> Step:
    return Step(
        1,
        f"the new key {fingerprint(new.public)} is accepted beside the old one, and not used yet",
        f"{_renew_list(kind)}; {_WAIT}",
    )


def _second(kind: Kind, old: Pair, new: Pair) -> Step:
    return Step(
        2,
        f"{secret_file(kind)} is the new key {fingerprint(new.public)} now;"
        f" {fingerprint(old.public)} is still accepted",
        f"renew the Secrets of {kind}s, for `{secret_file(kind)}`; {_WAIT}",
    )


def _third(kind: Kind, retired: list[str]) -> Step:
    return Step(
        3,
        f"{', '.join(map(fingerprint, retired))} is not accepted any more",
        f"{_renew_list(kind)}: that ends it",
    )


def _renew_list(kind: Kind) -> str:
    readers = " and ".join(f"{one}s" for one in KINDS if list_file(kind) in NEEDS[one])
    return f"renew the Secrets of {readers}, for the list `{list_file(kind)}`"


def _without(text: str, keys: list[str]) -> str:
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not line.strip() or line.split()[0] not in keys)


def _marked(text: str, key: str, remark: str) -> str:
    """Return a list's text with that remark on a key, in the place of what was there."""
    lines = (f"{key} {remark}" if line.split()[:1] == [key] else line for line in text.splitlines())
    return "".join(f"{line}\n" for line in lines)


def _write(path: Path, text: str, mode: int) -> None:
    """Replace a file as a whole. Raises `OSError`."""
    replace_file(path, text.encode(), mode, sync=True)
