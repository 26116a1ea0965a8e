"""The table of routes.

Requests are matched with it, and the page of the documentation is made from it.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from kontrol.web.access import Access
from kontrol.web.handlers import ApiRequest, Handlers
from kontrol.web.message import HttpError, Response

_OK = {200: "The document."}
_READ = {
    401: "The token is missing or wrong.",
    403: "This requires a token.",
    404: "The process is only an agent.",
    503: "etcd does not answer.",
}
_CHANGE = {
    200: "Done.",
    202: "Requested; the leader has not answered within 10 s. `kontrol status` shows the result.",
    401: "The token is missing or wrong.",
    403: "The token may only read, or the masters have no token file.",
    404: "The process is only an agent.",
    409: "The leader refused; the message says why.",
    503: "etcd does not answer, or is full; the message says how to fix that.",
}
_DAMAGED = {409: "The record in etcd is damaged; the master's log says how."}
_SET = _CHANGE | {
    202: "etcd did not confirm it within 10 s: it may have been done.",
    400: "The key, the value or the condition is not what it must be; the message says why.",
    409: "A limit would be exceeded, or the record in etcd is damaged.",
    412: "`NotAsExpected`: the key has another value than the expected one. Nothing was changed.",
}
_NO_BODY = {400: "There is a body, other than `{}`."}


@dataclass(frozen=True)
class Route:
    """One route. `least` is the access that a client must have at least.

    `redacted` says what is left out for a client without a token; `query` names its parameters.
    """

    method: str
    path: str
    least: Access
    handle: Callable[[Handlers, ApiRequest], Awaitable[Response]]
    doc: str
    statuses: Mapping[int, str]
    query: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    redacted: str = ""

    @property
    def pattern(self) -> re.Pattern[str]:
        """The pattern of its paths; names in braces stand for one segment each."""
        return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(self.path)) + r"\Z")


ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/healthz",
        Access.ANYONE,
        Handlers.healthz,
        "Whether the process is alive: its loop answers. For a liveness probe.",
        {200: 'Always `{"ok": true}`.'},
    ),
    Route(
        "GET",
        "/readyz",
        Access.ANYONE,
        Handlers.readyz,
        "Whether the process does its work, check by check. A master is ready while etcd answers "
        "and its mirror is current; an agent once every tier has acknowledged a keepalive within "
        "the TTL, and until it deregisters. For a readiness probe.",
        {200: "Every check is `ok`.", 503: "At least one is not; `detail` says why."},
        redacted="what a tier's master answered",
    ),
    Route(
        "GET",
        "/metrics",
        Access.ANYONE,
        Handlers.metrics,
        "All metrics, in Prometheus' text format.",
        {200: "The metrics."},
    ),
    Route(
        "GET",
        "/v1/status",
        Access.LOCAL,
        Handlers.status,
        "The state of the tier: etcd, leader and candidates, ensemble, what is due and what holds "
        "it, the run under way, the last runs, and problems with their fixes.",
        _OK | _READ,
        redacted="the standard error of runs",
    ),
    Route(
        "GET",
        "/v1/pods",
        Access.LOCAL,
        Handlers.pods,
        "The live pods in order, as the callback sees them, and the digest of that list.",
        _OK | _READ,
        redacted="payloads, and all fields that Kontrol does not know",
    ),
    Route(
        "GET",
        "/v1/pods/{key}",
        Access.LOCAL,
        Handlers.pod,
        "One live pod.",
        _OK | _READ | {404: "No live pod has this key, or the process is only an agent."},
        redacted="as above",
    ),
    Route(
        "GET",
        "/v1/state",
        Access.READER,
        Handlers.state,
        "The state that the callback returned last, and the run that returned it.",
        _OK | _READ,
    ),
    Route(
        "GET",
        "/v1/spec",
        Access.READER,
        Handlers.spec,
        "The desired state: its values, and which client set each of them when. `revision` is that "
        "of the store at its last change.",
        _OK | _READ | _DAMAGED,
    ),
    Route(
        "GET",
        "/v1/spec/{key}",
        Access.READER,
        Handlers.spec_key,
        "One value of the desired state.",
        _OK | _READ | _DAMAGED | {404: "The key is not set, or the process is only an agent."},
    ),
    Route(
        "GET",
        "/v1/leader",
        Access.LOCAL,
        Handlers.leader,
        "The leader's id, address, term and the fingerprint of its callback; null while there is "
        "none.",
        _OK | _READ,
    ),
    Route(
        "GET",
        "/v1/runs",
        Access.LOCAL,
        Handlers.runs,
        "The last entries of the ledger, the newest first.",
        _OK | _READ | {400: "`limit` is not a number from 1 to 200."},
        query={"limit": "How many, from 1 to 200; 20 by default."},
        redacted="standard error",
    ),
    Route(
        "GET",
        "/v1/runs/{run}",
        Access.LOCAL,
        Handlers.run,
        "One entry of the ledger; `state_kept` says whether its state can be restored.",
        _OK
        | _READ
        | {
            400: "Not a number.",
            404: "There is no such run, or the process is only an agent.",
        },
        redacted="standard error",
    ),
    Route(
        "POST",
        "/v1/runs",
        Access.WRITER,
        Handlers.run_now,
        "Run the callback now, even if nothing is due; the brake and the gap still hold it. "
        "The answer is sent when the run has started; `/v1/runs/{run}` shows how it ended.",
        _CHANGE | _NO_BODY | {200: "The run has started."},
    ),
    Route(
        "POST",
        "/v1/release",
        Access.WRITER,
        Handlers.release,
        "Release the brake: treat the missing pods as gone, and run the callback.",
        _CHANGE | _NO_BODY,
    ),
    Route(
        "POST",
        "/v1/rollback",
        Access.WRITER,
        Handlers.rollback,
        "Restore the state of an earlier run, as a run of its own in the ledger.",
        _CHANGE | {400: "The body names no run."},
        body='{"run": 7}',
    ),
    Route(
        "POST",
        "/v1/forget",
        Access.WRITER,
        Handlers.forget,
        "Delete a pod's registration, even one that cannot be read: its record is deleted, it "
        "counts as having left, and the next process that reports it gets the same number, "
        "whatever its nonce. `pod` is its key, its id, or `#` and its number. The ledger has an "
        "entry of it.",
        _CHANGE | {400: "The body names no pod."},
        body='{"pod": "2Ky07"}',
    ),
    Route(
        "POST",
        "/v1/set",
        Access.WRITER,
        Handlers.set_key,
        "Set a key of the desired state to any JSON value. With `if-is` only if it has that value "
        "now, with `if-absent` only if it is not set. Any master does it, also without a leader. "
        "`changed` is false if it had that value already.",
        _SET | {413: "The value is over 64 KiB of JSON, or the body is too large."},
        body='{"key": "replicas", "value": 3, "if-is": 2}',
    ),
    Route(
        "POST",
        "/v1/unset",
        Access.WRITER,
        Handlers.unset_key,
        "Unset a key of the desired state; with `if-is` only if it has that value now. "
        "`changed` is false if it was not set.",
        _SET,
        body='{"key": "replicas"}',
    ),
)


class Router:
    """Finds the route of a request."""

    def __init__(self, routes: tuple[Route, ...] = ROUTES) -> None:
        self._patterns: dict[str, tuple[re.Pattern[str], dict[str, Route]]] = {}
        for route in routes:
            _, methods = self._patterns.setdefault(route.path, (route.pattern, {}))
            methods[route.method] = route
            if route.method == "GET":
                methods["HEAD"] = route

    def find(self, method: str, path: str) -> tuple[Route | None, dict[str, str], str]:
        """Return the route, the path's parameters, and the methods to allow.

        The route is None for `OPTIONS`. Raises `HttpError`: 404 and 405.
        """
        for pattern, methods in self._patterns.values():
            match = pattern.match(path)
            if match is None:
                continue
            allow = ", ".join([*methods, "OPTIONS"])
            if method == "OPTIONS":
                return None, {}, allow
            if method not in methods:
                raise HttpError(
                    405,
                    "MethodNotAllowed",
                    f"{method[:20]} is not for {path}; expected {allow}",
                    (("Allow", allow),),
                )
            return methods[method], match.groupdict(), allow
        raise HttpError(
            404,
            "NoSuchPath",
            f"{path[:80]!r} is not a path of this API; expected one of {', '.join(self._patterns)}",
        )
