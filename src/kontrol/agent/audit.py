"""The audit: one line of the log for every call of `invoke` and `exec`, refused ones too.

    exec by operator 1a2b3c4d at 10.0.0.9: ['redis-cli', 'ping']: exit status 0 in 0.012 s

Every command that ran is logged (`kontrol.audit`). Refusals (`kontrol.audit.refused`) are limited
like other lines, to one a minute if they repeat, so that a flood of them does not fill a disk. What
callers wrote is bounded and escaped by `repr`, so that it cannot forge a line.
"""

import logging

from kontrol.agent.request import CommandRequest
from kontrol.rpc.methods import Call

_LONGEST = 1000  # characters of a command, and of a reason

_ran = logging.getLogger("kontrol.audit")
_refused = logging.getLogger("kontrol.audit.refused")


def began(call: Call, request: CommandRequest) -> None:
    """Log, in debug, that a command starts: it may never end."""
    _ran.debug("%s: begins", _what(call, request))


def ended(call: Call, request: CommandRequest, how: str, seconds: float) -> None:
    """Log a command that was run."""
    _ran.info("%s: %s in %.3f s", _what(call, request), _bounded(how), seconds)


def refused(call: Call, request: CommandRequest | None, why: Exception) -> None:
    """Log a call that was refused; `request` is None if it could not be read."""
    _refused.warning("%s: refused: %s", _what(call, request), _bounded(str(why)))


def address_of(call: Call) -> str:
    """Return the caller's address, without the number of its connection."""
    return call.peer.rpartition("#")[0]


def _what(call: Call, request: CommandRequest | None) -> str:
    who = f"{call.caller} {call.key}" if call.caller else "a client without a key"
    text = f"{call.method} by {who} at {address_of(call)}"
    if request is None:
        return text
    if request.fencing_token is not None:
        token = request.fencing_token
        text += f" (run {token.run}, term {token.term}, tier {token.tier})"
    command = list(request.argv) if request.cmd is None else request.cmd
    return f"{text}: {_bounded(repr(command))}"


def _bounded(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]}... ({len(text) - _LONGEST} more characters)"
