"""What a client without a token may see: no payload, annotation, state or output.

The tables name the fields that may be seen, never those that may not, so that a field which a later
version adds stays hidden until it is added here. They hold for REST, and `POD_FIELDS` for `pods()`
of RPC too, where a client has no key of a master or an operator.
"""

from collections.abc import Mapping

from kontrol.ensemble.canonical import JSON
from kontrol.web.view import Document

POD_FIELDS = (
    "app",
    "id",
    "ip",
    "key",
    "role",
    "seq",
    "nonce",
    "port",
    "eip",
    "node",
    "zone",
    "version",
)
"""The fields of a pod that Kontrol itself fills in."""

_ENTRY = (
    *("run", "term", "attempt", "reason", "by", "digest", "fingerprint", "started", "seconds"),
    *("ok", "why", "status", "signal", "pods", "changes", "follows", "state_kept", "again", "note"),
)
_STATUS = (
    *("version", "namespace", "app", "master", "time", "leader", "candidates", "ensemble", "plan"),
    *("running", "applied", "current", "changes_waiting_seconds", "usual_run_seconds", "problems"),
)


def pod(whole: Mapping[str, JSON]) -> Document:
    """Return a pod without its payload and whatever it reports beyond the known fields."""
    return _only(whole, POD_FIELDS)


def entry(whole: Mapping[str, JSON]) -> Document:
    """Return an entry of the ledger without state and standard error."""
    return _only(whole, _ENTRY)


def check(whole: Mapping[str, JSON]) -> Document:
    """Return a check of readiness without what a peer answered."""
    return _only(whole, ("name", "ok", "detail"))


def status(whole: Mapping[str, JSON]) -> Document:
    """Return the status without the address of etcd, and with redacted entries."""
    shown = _only(whole, _STATUS)
    etcd, runs = whole.get("etcd"), whole.get("runs")
    if isinstance(etcd, dict):
        shown["etcd"] = _only(etcd, ("ok", "error", "seconds"))
    if isinstance(runs, list):
        shown["runs"] = [entry(run) for run in runs if isinstance(run, dict)]
    return shown


def _only(whole: Mapping[str, JSON], names: tuple[str, ...]) -> Document:
    return {name: whole[name] for name in names if name in whole}
