"""What is left of a document for who holds no token: no payload, annotation, state or output.

Fields are named that may be seen, never those that may not: what a later version adds is kept back
until somebody decides.
"""

from collections.abc import Mapping

from kontrol.ensemble.canonical import JSON
from kontrol.web.view import Document

_POD = ("app", "id", "ip", "key", "role", "seq", "nonce", "port", "eip", "node", "zone", "version")
_ENTRY = (
    *("run", "term", "attempt", "reason", "by", "digest", "fingerprint", "started", "seconds"),
    *("ok", "why", "status", "signal", "pods", "changes", "follows", "state_kept"),
)
_STATUS = (
    *("version", "namespace", "app", "master", "time", "leader", "candidates", "ensemble", "plan"),
    *("running", "applied", "current", "changes_waiting_seconds", "usual_run_seconds", "problems"),
)


def pod(whole: Mapping[str, JSON]) -> Document:
    """Return a pod without its payload and whatever it reports beyond the known fields."""
    return _only(whole, _POD)


def entry(whole: Mapping[str, JSON]) -> Document:
    """Return an entry of the ledger without state and standard error."""
    return _only(whole, _ENTRY)


def check(whole: Mapping[str, JSON]) -> Document:
    """Return a check of readiness without what a peer answered."""
    return _only(whole, ("name", "ok", "detail"))


def status(whole: Mapping[str, JSON]) -> Document:
    """Return the situation without where etcd is, and with the entries reduced."""
    told = _only(whole, _STATUS)
    etcd, runs = whole.get("etcd"), whole.get("runs")
    if isinstance(etcd, dict):
        told["etcd"] = _only(etcd, ("ok", "error", "seconds"))
    if isinstance(runs, list):
        told["runs"] = [entry(run) for run in runs if isinstance(run, dict)]
    return told


def _only(whole: Mapping[str, JSON], names: tuple[str, ...]) -> Document:
    return {name: whole[name] for name in names if name in whole}
