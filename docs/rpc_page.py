"""The page of ZeroRPC methods, from the methods themselves. No Sphinx in here: a test reads it."""

import inspect
import re
from collections.abc import Iterable, Iterator
from typing import Any, cast

from kontrol.agent.executor import CALLERS, Executor
from kontrol.daemon.wire_master import master_methods
from kontrol.process.pool import Guards
from kontrol.rpc.methods import Method, Signature

ERRORS = {
    "InvalidRecord": "A keepalive that is no JSON, too large, too deep, or has a field that is "
    "missing or invalid. The message names it.",
    "Conflict": "Another pod that is alive has this key. The message names both.",
    "Stale": "An older record than the known one of this pod. The message names both, in the "
    "form above.",
    "Gone": "This process of the pod has deregistered.",
    "NotWritten": "The pod is alive: its lease was refreshed. Its change is not in etcd yet, "
    "which is full or slow: report again, to any master. Or many pods join at the same time, and "
    "this one waits for its turn: report again over this connection. The message says which.",
    "TooManyPods": "The tier has as many pods as `KONTROL_MAX_PODS` allows, and this is a new one.",
    "TooManyBytes": "The records of the tier's pods take as many bytes as `KONTROL_MAX_BYTES` "
    "allows. A pod that is alive stays so, and its change is not written.",
    "TooManyJoins": "Its address reported more new pods than `KONTROL_MAX_JOINS` allows in a "
    "minute. Report again.",
    "Unavailable": "This master has no answer from etcd, or its queue of writes is full. Try "
    "another master, or try again.",
    "InvalidRequest": "The argument of `exec` is invalid. The message says why.",
    "Forbidden": "Not for this caller: the kind of its key, `KONTROL_INVOKE`, or the list of "
    "allowed commands.",
    "Fenced": "A command of a term that is over.",
    "Busy": "The largest number of calls, or commands, is in progress.",
    "TooLarge": "The answer of `invoke` is too large: `exec` streams any amount.",
    "Unsendable": "The answer is larger than a message may be.",
    "NotStarted": "The command could not be started.",
    "Ended": "The command was killed, because its agent ends.",
    "NameError": "There is no such method.",
    "TypeError": "The method takes another number of arguments.",
    "ProtocolError": "An event that does not follow the protocol.",
    "InternalError": "A fault of Kontrol; its log has the traceback. Please report it.",
}


def methods() -> Iterator[tuple[str, Method, str]]:
    """Yield each method: its name, what answers, and who may call it."""
    unused = cast("Any", None)  # making the methods asks nothing of what they work on
    for name, method in master_methods(unused).items():
        rule = Signature.of(name, method).restriction
        who = "anyone"
        if rule is not None:
            who = f"holders of {_or(rule.kinds)} keys"
            who += "; without keys, anyone" if rule.insecure else "; without keys, no one"
        yield name, method, f"Masters. For {who}."
    executor = Executor(Guards(most=1), environ={}, secrets=())
    for name, method in executor.methods().items():
        who = f"holders of {_or(sorted(CALLERS))} keys; without keys, no one"
        yield name, method, f"Agents. For {who}, unless `KONTROL_INVOKE` is `insecure`."


def render() -> str:
    """Return reStructuredText: a section for the methods, and one for errors."""
    lines = ["Methods", "-------", ""]
    for name, method, who in methods():
        signature = Signature.of(name, method)
        words = ", ".join(one.name for one in signature.parameters)
        streams = " *streams*" if signature.streams else ""
        doc = inspect.cleandoc(signature.doc).replace("\n", "\n   ")
        lines += [f"``{name}({words})``{streams}", f"   {_code(doc)}", "", f"   {_code(who)}", ""]
    lines += ["Errors", "------", "", ".. list-table::", "   :widths: 20 80", ""]
    for name, text in ERRORS.items():
        lines += [f"   * - ``{name}``", f"     - {_code(text)}"]
    return "\n".join(lines) + "\n"


def _or(kinds: Iterable[str]) -> str:
    return " or ".join(f"*{kind}*" for kind in kinds)


def _code(text: str) -> str:
    return re.sub(r"`([^`]+)`|(\{[^{}]+\})", lambda found: f"``{found[1] or found[2]}``", text)
