"""The handlers: one method for each route, given a request and how much its client may do."""

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from kontrol.ensemble.canonical import JSON, NotJSON, canonical, parse
from kontrol.ensemble.desired import MAX_DEPTH, BadSetting, Expected, check_key, encode_value
from kontrol.metrics import CONTENT_TYPE
from kontrol.web import redaction
from kontrol.web.access import Access
from kontrol.web.message import HttpError, Request, Response, document
from kontrol.web.view import Document, OperatorAction, View

Checks = Callable[[], Sequence[Mapping[str, JSON]]]
Metrics = Callable[[], str]

_PART = 64 * 1024  # bytes of a long answer that are made and sent in one go
_TIMEOUT = 4.0  # seconds for the store; clients wait for 5 at least, and should get the reason
_RUNS = 20
_LONGEST = 253  # characters of a pod's name
_MOST_RUNS = 200  # the ledger keeps no more
_NUMBER = re.compile(r"[0-9]{1,18}\Z")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """One request to the API: its client's access, and the parameters of its path and query."""

    request: Request
    access: Access
    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)

    @property
    def trusted(self) -> bool:
        """Whether the client may see everything."""
        return self.access >= Access.READER


class Handlers:
    """Answers requests. `view` is None on an agent; `ready` and `metrics` are called in turn."""

    def __init__(
        self, *, view: View | None, ready: Sequence[Checks], metrics: Sequence[Metrics]
    ) -> None:
        self._maybe = view
        self._ready = ready
        self._metrics = metrics

    @property
    def _view(self) -> View:
        if self._maybe is None:
            raise HttpError(
                404,
                "NotAMaster",
                "this process is an agent only; ask a master of its tier",
            )
        return self._maybe

    async def healthz(self, _: ApiRequest) -> Response:
        """Answer, which shows that the event loop runs."""
        return document({"ok": True})

    async def readyz(self, api: ApiRequest) -> Response:
        """Return every check; 503 if one fails."""
        checks = [check for checks in self._ready for check in checks()]
        ready = all(check["ok"] for check in checks)
        shown = [
            dict(check) if api.access >= Access.LOCAL else redaction.check(check)
            for check in checks
        ]
        return document({"ready": ready, "checks": shown}, 200 if ready else 503)

    async def metrics(self, _: ApiRequest) -> Response:
        """Return all metrics."""
        text = "".join(render() for render in self._metrics)
        return Response(200, text.encode("utf-8"), CONTENT_TYPE)

    async def status(self, api: ApiRequest) -> Response:
        """Return the state of the tier."""
        whole = await self._view.status()
        return document(whole if api.trusted else redaction.status(whole))

    async def pods(self, api: ApiRequest) -> Response:
        """Return the ordered pods and their digest, in parts: there may be many."""
        pods = await self._view.pods(live=api.trusted)
        digest = self._view.digest  # nothing is awaited between: it is that of these pods
        return Response(200, _parts(pods, digest, _whole if api.trusted else redaction.pod))

    async def pod(self, api: ApiRequest) -> Response:
        """Return one pod."""
        key = api.path["key"]
        for pod in await self._view.pods(live=api.trusted):
            if pod["key"] == key:
                return document(pod if api.trusted else redaction.pod(pod))
        raise HttpError(404, "NoSuchPod", f"no live pod has the key {key!r}; see /v1/pods")

    async def state(self, _: ApiRequest) -> Response:
        """Return the callback's state, and the run that returned it."""
        return document(await _soon(self._view.state()))

    async def spec(self, _: ApiRequest) -> Response:
        """Return the desired state."""
        return document(await self._desired())

    async def spec_key(self, api: ApiRequest) -> Response:
        """Return one key of the desired state."""
        key, whole = api.path["key"], await self._desired()
        values, keys = whole["spec"], whole["keys"]
        if not isinstance(values, dict) or not isinstance(keys, dict) or key not in values:
            raise HttpError(404, "NoSuchKey", f"{key!r:.80} is not set; see /v1/spec")
        known = keys.get(key)
        return document(
            {
                "key": key,
                "value": values[key],
                **(known if isinstance(known, dict) else {}),
                "revision": whole["revision"],
            }
        )

    async def _desired(self) -> Document:
        found = await _soon(self._view.spec())
        if found is None:
            raise HttpError(
                409,
                "SpecDamaged",
                "the desired state in etcd is damaged; the master's log says how",
            )
        return found

    async def set_key(self, api: ApiRequest) -> Response:
        """Set a key of the desired state."""
        body = _body(api.request, ("key", "value", "if-is", "if-absent"), depth=MAX_DEPTH + 2)
        if "value" not in body:
            raise HttpError(
                400, "BadValue", 'there is no value; expected {"key": ..., "value": ...}'
            )
        with _settings():
            return await self._change(api, body, encode_value(body["value"]))

    async def unset_key(self, api: ApiRequest) -> Response:
        """Unset a key of the desired state."""
        body = _body(api.request, ("key", "if-is"), depth=MAX_DEPTH + 2)
        with _settings():
            return await self._change(api, body, None)

    async def _change(
        self, api: ApiRequest, body: Mapping[str, JSON], value: bytes | None
    ) -> Response:
        key, absent = check_key(body.get("key")), body.get("if-absent", False)
        if not isinstance(absent, bool) or (absent and "if-is" in body):
            raise HttpError(
                400, "BadCondition", "if-absent is true or false, and there is no if-is with it"
            )
        expected = Expected(None) if absent else None
        if "if-is" in body:
            expected = Expected(encode_value(body["if-is"]))
        by = f"REST from {api.request.peer}"
        answer = await self._view.set_spec(key, value, by, expected=expected)
        if refused := answer.get("refused"):
            status = 412 if refused == "NotAsExpected" else 409
            raise HttpError(status, str(refused), str(answer.get("message", "refused")))
        return document(answer, 200 if answer.get("done") else 202)

    async def leader(self, _: ApiRequest) -> Response:
        """Return the leader."""
        leader: JSON = self._view.leader()
        return document({"leader": leader})

    async def runs(self, api: ApiRequest) -> Response:
        """Return the last entries of the ledger."""
        limit = _number(api.query.get("limit", str(_RUNS)), "limit", 1, _MOST_RUNS)
        runs = await _soon(self._view.runs(limit))
        return document({"runs": runs if api.trusted else [redaction.entry(run) for run in runs]})

    async def run(self, api: ApiRequest) -> Response:
        """Return one entry of the ledger."""
        number = _number(api.path["run"], "the run", 1, 10**18)
        run = await _soon(self._view.run(number))
        if run is None:
            raise HttpError(
                404,
                "NoSuchRun",
                f"run {number} is not in the ledger, which keeps the last {_MOST_RUNS}; "
                "/v1/runs, or `kontrol runs`, lists them",
            )
        return document(run if api.trusted else redaction.entry(run))

    async def run_now(self, api: ApiRequest) -> Response:
        """Ask the leader to run the callback now."""
        _body(api.request, ())
        return await self._operate(api, "run")

    async def release(self, api: ApiRequest) -> Response:
        """Ask the leader to release the brake."""
        _body(api.request, ())
        return await self._operate(api, "release")

    async def rollback(self, api: ApiRequest) -> Response:
        """Ask the leader to restore the state of an earlier run."""
        run = _body(api.request, ("run",)).get("run")
        if not isinstance(run, int) or isinstance(run, bool) or not 1 <= run <= 10**18:
            raise HttpError(400, "BadRun", f'run is {run!r}; expected a number, as {{"run": 7}}')
        return await self._operate(api, "rollback", run)

    async def forget(self, api: ApiRequest) -> Response:
        """Ask the leader to delete a pod's registration."""
        pod = _body(api.request, ("pod",)).get("pod")
        if not isinstance(pod, str) or not 1 <= len(pod) <= _LONGEST or not pod.isprintable():
            raise HttpError(
                400,
                "BadPod",
                f'pod is {pod!r:.80}; expected its key or id, as {{"pod": "2Ky07"}}',
            )
        return await self._operate(api, "forget", pod=pod)

    async def _operate(
        self, api: ApiRequest, kind: OperatorAction, run: int | None = None, *, pod: str = ""
    ) -> Response:
        by = f"REST from {api.request.peer}"
        answer = await self._view.ask(kind, by, run=run, pod=pod)
        if answer.get("refused"):
            raise HttpError(409, "Refused", str(answer.get("message", "the leader refused")))
        return document(answer, 200 if answer.get("done") else 202)


async def _soon(read: Awaitable[T]) -> T:
    """Await what is read from the store. Raises `TimeoutError`."""
    async with asyncio.timeout(_TIMEOUT):
        return await read


def _parts(
    pods: Iterable[Document], digest: str, shown: Callable[[Document], Document]
) -> Iterator[bytes]:
    """Encode pods, a part at a time."""
    part = bytearray(b'{"digest":' + canonical(digest) + b',"pods":[')
    for i, pod in enumerate(pods):
        part += (b",\n" if i else b"\n") + canonical(shown(pod))
        if len(part) >= _PART:
            yield bytes(part)
            part.clear()
    yield bytes(part + b"]}\n")


def _whole(document: Document) -> Document:
    return document


def _number(text: str, name: str, least: int, most: int) -> int:
    number = int(text) if _NUMBER.match(text) else -1
    if not least <= number <= most:
        raise HttpError(
            400, "BadNumber", f"{name} is {text[:40]!r}; expected a number from {least} to {most}"
        )
    return number


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Refuse a key or a value that the desired state cannot have."""
    try:
        yield
    except BadSetting as error:
        status = 413 if error.name == "ValueTooLarge" else 400
        raise HttpError(status, error.name, str(error)) from None


def _body(request: Request, names: tuple[str, ...], *, depth: int = 4) -> Mapping[str, JSON]:
    """Return the JSON object that a body is, empty if there is none; only `names` may be in it."""
    if not request.body.strip():
        return {}
    expected = f"expected an object with {', '.join(names)}" if names else "expected none, or {}"
    try:
        value = parse(request.body, depth=depth)
    except NotJSON as error:
        raise HttpError(400, "BadBody", f"the body is not JSON ({error}); {expected}") from None
    if not isinstance(value, dict) or set(value) - set(names):
        raise HttpError(400, "BadBody", f"the body is {request.body[:80]!r}; {expected}")
    return value
