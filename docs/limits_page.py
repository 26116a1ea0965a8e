"""The tables of limits, from where the code has them. No Sphinx in here: a test reads it too.

A limit's line is the string below it in its source, or stands here beside its name. A class of
limits is taken whole, so that one more cannot be forgotten.
"""

import ast
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise
from types import ModuleType
from typing import Any, NamedTuple, cast


class Limit(NamedTuple):
    """One limit: where it is, `module:name`, and its line, empty if its source has it."""

    place: str
    text: str = ""


TABLES: dict[str, tuple[str, tuple[Limit, ...]]] = {
    "A pod's record": (
        "What is over these is refused by the master, and told to the agent with the reason.",
        (
            Limit("kontrol.ensemble.pod:MAX_BYTES", "Bytes of a keepalive, its payload included."),
            Limit("kontrol.ensemble.pod:MAX_DEPTH", "Arrays and objects within each other."),
            Limit(
                "kontrol.ensemble.pod:MAX_NAME",
                "Characters of `id`, `app`, `role`, `node`, `zone` and `eip`: letters, digits and "
                "`. _ : / -`.",
            ),
            Limit("kontrol.ensemble.pod:MAX_COUNTER", "The counter `n` of a keepalive."),
            Limit("kontrol.master.registry.quota:Bounds"),
            Limit(
                "kontrol.master.registry.quota:SMALL_RECORD",
                "Bytes of a record that a known pod may always have, whatever `KONTROL_MAX_BYTES`.",
            ),
            Limit(
                "kontrol.master.registry.quota:_ADDRESSES",
                "Addresses whose new pods one master counts for `KONTROL_MAX_JOINS`.",
            ),
            Limit(
                "kontrol.agent.payload:_MAX_FILE",
                "Bytes of the payload file, which may be wider spaced than what is sent of it.",
            ),
            Limit(
                "kontrol.agent.connection:MOST_CONNECTIONS",
                "Connections of an agent to the masters of one tier, while answers are late.",
            ),
            Limit(
                "kontrol.ensemble.live:MAX_LIVE",
                "Bytes of the live facts that come with a keepalive, beside its record.",
            ),
            Limit("kontrol.ensemble.live:LIVE_DEPTH", "Arrays and objects within each other."),
            Limit(
                "kontrol.agent.live:_MAX_FILE",
                "Bytes of the file of live facts, which may be wider spaced.",
            ),
            Limit(
                "kontrol.master.registry.facts:LIVE_RATE",
                "Bytes of live facts per second that one master writes to etcd, 256 more counted "
                "for each pod; further ones wait, and are replaced by newer ones.",
            ),
            Limit(
                "kontrol.master.registry.queue:_WAITING",
                "Keepalives that wait in one master for etcd; more are told to come again.",
            ),
            Limit(
                "kontrol.master.registry.leases:UNDER_WAY",
                "Refreshes of one pod's lease that one master has under way.",
            ),
        ),
    ),
    "The desired state": (
        "What operators set for the callback. A change over a limit is refused.",
        (
            Limit("kontrol.ensemble.desired:MAX_KEY", "Characters of a key of the desired state."),
            Limit("kontrol.ensemble.desired:MAX_KEYS", "Keys of the desired state."),
            Limit(
                "kontrol.ensemble.desired:MAX_VALUE",
                "Bytes of one value of the desired state, as JSON.",
            ),
            Limit(
                "kontrol.ensemble.desired:MAX_SPEC",
                "Bytes of the desired state, as JSON, keys included.",
            ),
            Limit(
                "kontrol.ensemble.desired:MAX_DEPTH",
                "Arrays and objects within each other, in one value of the desired state.",
            ),
            Limit(
                "kontrol.master.records.desired:_LOG",
                "Changes of the desired state whose authors are remembered, if they unset a key.",
            ),
        ),
    ),
    "What is published": (
        (
            "What a run of the callback sends to the pods of the tier, all documents together. A "
            "document over a limit is refused, and what was published stays."
        ),
        (
            Limit(
                "kontrol.master.records.published:PUBLISHED_LIMIT",
                "Bytes of all documents, as JSON.",
            ),
            Limit("kontrol.master.records.published:MOST_DOCUMENTS", "Documents."),
            Limit(
                "kontrol.master.records.published:DOCUMENT_DEPTH",
                "Arrays and objects in each other, of one document.",
            ),
            Limit(
                "kontrol.master.records.published:KEY_LIMIT",
                "Characters of a document's key: letters, digits and `. _ : / -`.",
            ),
            Limit(
                "kontrol.master.leader.publishing:MOST_PUBLISHING",
                "Documents of one run that wait to be written; more are refused.",
            ),
            Limit(
                "kontrol.master.runsocket:MOST_CLIENTS",
                "`kontrol publish` of one run that are served at a time; more wait.",
            ),
            Limit(
                "kontrol.master.runsocket:HEAD_LIMIT",
                "Bytes of what such a request says besides the document.",
            ),
            Limit(
                "kontrol.master.publications:MOST_WAITING",
                "Agents that wait at one master for the next version; more are told to ask "
                "again, and do so every third of the TTL.",
            ),
            Limit(
                "kontrol.master.publications:MOST_IN_FLIGHT",
                "Bytes that one master has sent to agents which have not confirmed them; other "
                "agents wait for their turn.",
            ),
            Limit(
                "kontrol.master.publications:AGAIN",
                "Seconds between two answers of the same version to one agent.",
            ),
            Limit(
                "kontrol.agent.published:DOCUMENTS_LIMIT",
                "Bytes that an agent takes of a master.",
            ),
            Limit(
                "kontrol.agent.published:DOCUMENTS_DEPTH",
                "Arrays and objects in each other that an agent takes.",
            ),
        ),
    ),
    "The callback, its state and the ledger": (
        (
            "An ensemble may have any number of pods: what is too large for a variable of the "
            "environment is in the files and on standard input alone."
        ),
        (
            Limit(
                "kontrol.master.callback:STRING_LIMIT",
                "Bytes of one variable in the callback's environment, its name included: Linux's.",
            ),
            Limit("kontrol.master.callback:STATE_LIMIT", "Bytes of the state, as JSON."),
            Limit(
                "kontrol.master.callback:STATE_DEPTH",
                "Arrays and objects in each other.",
            ),
            Limit(
                "kontrol.master.runfiles:AGAIN_MIN",
                "Seconds that a callback may write to `$AGAIN_FILE`, at least.",
            ),
            Limit(
                "kontrol.master.runfiles:AGAIN_MAX",
                "Seconds that a callback may write to `$AGAIN_FILE`, at most.",
            ),
            Limit(
                "kontrol.master.runfiles:_AGAIN_LIMIT",
                "Bytes of `$AGAIN_FILE`, white space included.",
            ),
            Limit(
                "kontrol.master.runfiles:NOTE_LIMIT",
                "Bytes of the note in `$NOTE_FILE`; a longer one is cut.",
            ),
            Limit(
                "kontrol.process.command:Command.stderr_tail",
                "Bytes of standard error that are kept, its end.",
            ),
            Limit(
                "kontrol.process.command:LINE_LIMIT",
                "Bytes of one line of standard error that go to the log.",
            ),
            Limit(
                "kontrol.master.records.runs:_ENTRY",
                "Bytes of an entry of the ledger; standard error gives way to the rest.",
            ),
            Limit("kontrol.master.leader.ledger:_RUNS", "Entries of the ledger that are kept."),
            Limit("kontrol.master.leader.ledger:_STATES", "States that are kept, to roll back to."),
            Limit(
                "kontrol.master.leader.requests:_LEASE",
                "Seconds for which what an operator asked for waits for a leader.",
            ),
        ),
    ),
    "The ZeroRPC endpoint": (
        "",
        (
            Limit("kontrol.rpc.limits:Limits"),
            Limit(
                "kontrol.rpc.zmtp.curve:MAX_METADATA",
                "Bytes of what a peer with keys says of itself when it connects.",
            ),
            Limit(
                "kontrol.daemon.wire_master:_RATE",
                "Calls of `pods` per second from one address without a master's or operator's key.",
            ),
            Limit("kontrol.daemon.wire_master:_BURST", "Such calls together, after a pause."),
        ),
    ),
    "Remote commands": (
        "",
        (
            Limit("kontrol.agent.executor:Bounds"),
            Limit("kontrol.agent.request:MAX_SECONDS", "Seconds of a command's longest timeout."),
            Limit("kontrol.agent.allow:MAX_FILE", "Bytes of the allow-list."),
            Limit("kontrol.agent.allow:MAX_ARGUMENT"),
            Limit("kontrol.process.command:MATCH_LIMIT"),
            Limit(
                "kontrol.agent.request:MOST_TIERS",
                "Tiers whose highest term an agent remembers.",
            ),
            Limit("kontrol.cli.invoke.commands:_MOST", "The most that `--parallel` takes."),
            Limit("kontrol.cli.invoke.input:MAX_STDIN", "Bytes of the file of `--stdin`."),
        ),
    ),
    "The REST endpoint": (
        "",
        (
            Limit("kontrol.web.message:Limits"),
            Limit("kontrol.web.access:_MOST", "Bytes of the token file."),
        ),
    ),
    "What a boot leaves": (
        "A file over this is ignored by the commands that would read it.",
        (
            Limit(
                "kontrol.settings.booted:MAX_BYTES",
                "Bytes of the file with what `kontrol boot` found.",
            ),
        ),
    ),
    "The command line": (
        "",
        (
            Limit("kontrol.cli.exchange:LIMIT", "Bytes of an answer that is read."),
            Limit(
                "kontrol.cli.exchange:CONNECT",
                "Seconds to find an address, and to connect to it, before the next is tried.",
            ),
        ),
    ),
    "The agent": (
        "",
        (
            Limit(
                "kontrol.agent.schedule:MAX_TTL",
                "Seconds of a TTL that an agent accepts; a longer one counts as this.",
            ),
            Limit(
                "kontrol.agent.agent:DEREGISTER_SECONDS",
                "Seconds for the last keepalive to every tier.",
            ),
        ),
    ),
}


def render() -> str:
    """Return reStructuredText: a section with a table for each part."""
    lines: list[str] = []
    for title, (text, limits) in TABLES.items():
        lines += [title, "-" * len(title), "", *([text.replace("`", "``"), ""] if text else [])]
        lines += [".. list-table::", "   :widths: 18 82", ""]
        for line, value in rows(limits):
            lines += [f"   * - {_shown(line, value)}", f"     - {line.replace('`', '``')}"]
        lines.append("")
    return "\n".join(lines)


def rows(limits: tuple[Limit, ...]) -> Iterator[tuple[str, float]]:
    """Yield the line and the value of each limit."""
    for limit in limits:
        place, _, name = limit.place.partition(":")
        module = importlib.import_module(place)
        owner, _, attribute = name.rpartition(".")
        found: Any = getattr(module, owner or name)
        if owner:
            yield limit.text, found.__dataclass_fields__[attribute].default
        elif isinstance(found, type):
            told, made = _strings(found), cast("Any", found())
            for one in fields(made):
                yield told[one.name], getattr(made, one.name)
        else:
            yield limit.text or _strings(module)[name], found


def _strings(source: ModuleType | type) -> dict[str, str]:
    """Return the strings that stand below assignments, by the name assigned to."""
    body: list[ast.stmt] = ast.parse(inspect.getsource(source)).body
    if isinstance(body[0], ast.ClassDef):
        body = body[0].body
    found: dict[str, str] = {}
    for before, after in pairwise(body):
        match before, after:
            case (
                ast.Assign(targets=[ast.Name(name)]) | ast.AnnAssign(target=ast.Name(name)),
                ast.Expr(ast.Constant(str(text))),
            ):
                found[name] = " ".join(text.split())
    return found


def _shown(line: str, value: float) -> str:
    """Return a number as people read it, by what its line counts."""
    if line.startswith("Bytes"):
        for unit, size in (("MiB", 1 << 20), ("KiB", 1 << 10)):
            if value >= size and not value % size:
                return f"{int(value) // size} {unit}"
    if line.startswith("Seconds"):
        return f"{value:,g} s"
    return f"{value:,g}" if value < 1e6 else f"{value:,.0f}"
