"""The form of an export, judged before anything of it is written. Pure.

What an import wrote is read by every master, and a record that one cannot read would end all of
them, again and again. So nothing is put into a store that was not seen to be what it should be.
"""

import re
from typing import Any

from kontrol.ensemble.canonical import JSON, canonical

_MOST = 2**62  # of terms and numbers of pods: far from where 64 bits end
_RUNS = 10**12 - 1  # runs' keys have twelve digits
_ENTRY = 64 * 1024  # bytes: an entry is written with 4 KiB, or little more
_STATE = 1024 * 1024  # bytes: twice what a callback may print; etcd takes half as much again
_SEAT = re.compile(r"[0-9A-Za-z_-]{1,64}(\.[0-9]{1,20})?\Z")  # `Keys.seat` and `Keys.old_seat`


def check(found: dict[str, Any]) -> None:
    """Raise `ValueError` (or `TypeError`, `KeyError`, `AttributeError`) for a damaged document."""
    for name in ("term", "seq"):
        _number(name, found[name], _MOST)
    for key, seat in found["seats"].items():
        _that(_SEAT.match(key) is not None, f"seats: {key!r:.80} is no key of a pod")
        _seat(f"seats, {key}", seat)
    for number, entry in found["runs"].items():
        _number("a run", int(number), _RUNS)
        _that(isinstance(entry, dict), f"run {number} is {entry!r:.80}")
        _that(entry.get("run") == int(number), f"run {number} calls itself {entry.get('run')!r}")
        _small(f"run {number}", entry, _ENTRY)
    for number, state in found["states"].items():
        _number("a state's run", int(number), _RUNS)
        _small(f"the state of run {number}", state, _STATE)
    _small("the state", found.get("state"), _STATE)
    if found["applied"] is not None:
        _applied(found["applied"])


def _seat(name: str, seat: dict[str, Any]) -> None:
    for member in ("id", "nonce"):
        _that(isinstance(seat[member], str), f"{name}: {member} is {seat[member]!r:.80}")
    if seat["n"] is not None:
        _number(f"{name}: n", seat["n"], 2**63 - 1)
    _number(f"{name}: seq", seat["seq"], _MOST)
    _that(isinstance(seat.get("left", False), bool), f"{name}: left is {seat.get('left')!r:.80}")
    idle = seat.get("idle")
    _that(idle is None or type(idle) in (int, float), f"{name}: idle is {idle!r:.80}")


def _applied(applied: dict[str, Any]) -> None:
    _number("applied: run", applied["run"], _RUNS)
    digest, fingerprint = applied["digest"], applied["fingerprint"]
    _that(isinstance(digest, str), f"applied: digest is {digest!r:.80}")
    _that(isinstance(fingerprint, str | None), f"applied: fingerprint is {fingerprint!r:.80}")
    for row in applied["members"]:
        seq, *texts = row
        _number("applied: seq", seq, _MOST)
        right = len(texts) == 5 and all(isinstance(text, str) for text in texts)
        _that(right, f"applied: a member is {row!r:.80}")


def _number(name: str, value: object, most: int) -> None:
    _that(type(value) is int and 0 <= value <= most, f"{name} is {value!r:.80}")


def _small(name: str, value: JSON, most: int) -> None:
    size = len(canonical(value))
    _that(size <= most, f"{name} has {size} bytes, over {most}")


def _that(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)
