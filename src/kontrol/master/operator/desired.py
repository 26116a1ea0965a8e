"""The desired state, as operators read and change it."""

from kontrol.ensemble.canonical import JSON, parse
from kontrol.ensemble.desired import BadSetting, Expected
from kontrol.master.desired import DesiredState, NotAsExpected, Seen, Unreadable
from kontrol.master.operator.problems import free_space
from kontrol.master.records.desired import READ_DEPTH
from kontrol.store.protocol import Ambiguous, NoSpace


def shown(seen: Seen) -> dict[str, JSON] | None:
    """Return the desired state, and which client set each key when; None if it is damaged."""
    if seen.desired is None:
        return None
    values = seen.desired.values
    return {
        "spec": parse(seen.desired.document, depth=READ_DEPTH),
        "keys": {key: {"by": each.by, "at": each.at} for key, each in sorted(values.items())},
        "revision": seen.revision,
    }


async def change(
    state: DesiredState,
    key: str,
    value: bytes | None,
    by: str,
    *,
    expected: Expected | None,
    timeout: float,
) -> dict[str, JSON]:
    """Set a key to a value in canonical form, or unset it with None; at most `timeout` seconds.

    Returns `done`, `message`, `changed` (whether there was something to change) and `refused`, the
    name of the refusal or empty. Raises `NoSpace` with the fix, and other `StoreError`.
    """
    did = "unset" if value is None else "set"
    try:
        changed = await state.change(key, value, by=by, expected=expected, timeout=timeout)
    except NotAsExpected as error:
        return _answer(key, str(error), refused="NotAsExpected")
    except Unreadable as error:
        return _answer(key, str(error), refused="SpecDamaged")
    except BadSetting as error:
        return _answer(key, str(error), refused=error.name)
    except NoSpace:
        fix = free_space(state.cache.revision)
        raise NoSpace(f"it does not store the desired state. To fix that, {fix}") from None
    except Ambiguous as error:
        return {**_answer(key, f"etcd: {error}"), "done": False}
    if changed:
        return _answer(key, f"{key} is {did}", changed=True)
    already = "was not set" if value is None else "has that value already"
    return _answer(key, f"{key} {already}")


def _answer(key: str, message: str, *, refused: str = "", changed: bool = False) -> dict[str, JSON]:
    return {
        "key": key,
        "done": not refused,
        "changed": changed,
        "message": message,
        "refused": refused,
    }
