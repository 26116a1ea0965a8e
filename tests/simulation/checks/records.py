"""What becomes of records: rollbacks, and fields of other versions."""

from collections.abc import Iterator

from tests.simulation.checks.runs import rolled_back
from tests.simulation.history import KEYS, Commit, History, Record, StoreView, decode, puts, written
from tests.simulation.versions import NEXT


def rolled_back_once(history: History) -> Iterator[str]:
    """11: a rollback puts back the state that was asked for, once, with its answer."""
    view = StoreView()
    for entry in history:
        if isinstance(entry, Commit) and rolled_back(entry) is not None:
            asked = [
                (name, request)
                for name, request in puts(entry, KEYS.requests)
                if request.get("kind") == "rollback" and "answer" in request
            ]
            if len(asked) != 1:
                yield f"a rollback at {entry.at:.3f} answers {asked}, not one request"
            for name, request in asked:
                if "answer" in view.requests.get(name, {}):
                    yield f"request {name} is done again at {entry.at:.3f}"
                kept = view.raw.get(KEYS.state_of(request["run"]))
                state = written(entry, KEYS.state)
                if kept is None or kept.value != state:
                    run = request["run"]
                    yield f"at {entry.at:.3f} {state!r} is put back, run {run} left {kept}"
        view.apply(entry)


def unknown_fields_stay(history: History) -> Iterator[str]:
    """What a later version wrote into a record is there after it is rewritten."""
    view = StoreView()
    for entry in history:
        if isinstance(entry, Commit):
            for change in entry.changes:
                before, key = view.raw.get(change.kv.key), change.kv.key
                if change.type == "delete" or before is None:
                    continue
                old, new = decode(before.value), decode(change.kv.value)
                if old and new and NEXT in old and NEXT not in new and _same(key, old, new):
                    yield f"{key} loses a field at {entry.at:.3f}: {new} is written over {old}"
        view.apply(entry)


def _same(key: str, old: Record, new: Record) -> bool:
    """Tell whether two records at a key are of the same thing."""
    same = {
        KEYS.registrations: ("id", "seq"),
        KEYS.requests: (),
        KEYS.meta: (),
        KEYS.running: ("run",),
    }
    for prefix, names in same.items():
        if key.startswith(prefix):
            return all(old.get(name) == new.get(name) for name in names)
    return False
