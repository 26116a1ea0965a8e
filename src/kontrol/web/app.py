"""From a request to its answer: host, rate, route, access, and then a handler.

Invariant: every request gets an answer within the limit, and no answer holds a traceback. An
unexpected error is logged, counted, and answered with 500.
"""

import asyncio
import contextlib
import logging
import re
from collections import Counter
from urllib.parse import parse_qsl

from kontrol.ratelimit import LogLimiter, RateLimiter
from kontrol.web import hosts
from kontrol.web.access import Access, Gate
from kontrol.web.handlers import ApiRequest, Handlers
from kontrol.web.message import HttpError, Limits, Request, Response
from kontrol.web.routes import Route, Router

log = logging.getLogger(__name__)

_BAD_TOKENS_EVERY = 60.0  # seconds between log lines about tokens that are not ours
# Not limited in rate: they cost no more than a refusal, and Kubernetes, which kills a pod that does
# not answer them, may share its address with a flood (where a node translates addresses).
_PROBES = ("/healthz", "/readyz")
_LARGE = ("/v1/set", "/v1/unset")  # their bodies hold values of the desired state
_PATH = re.compile(r"/[!-~]*\Z")

Outages = tuple[type[Exception], ...]


class App:
    """Answers requests. `answers` counts them by status, `failures` the unexpected errors."""

    def __init__(
        self,
        handlers: Handlers,
        *,
        names: frozenset[str],
        gate: Gate,
        limits: Limits,
        outages: Outages = (),
        full: Outages = (),
    ) -> None:
        """`names` are the host names of this process, in lower case.

        `outages` are the errors of the view if etcd does not answer, `full` if it is full.
        """
        self.answers: Counter[int] = Counter()
        self.failures = 0
        self._handlers = handlers
        self._names = names
        self._gate = gate
        self._limits = limits
        self._outages: Outages = (TimeoutError, *outages)
        self._full = full
        self._router = Router()
        self._rate = RateLimiter(limits.rate, limits.burst)
        self._bad_tokens = LogLimiter(1, _BAD_TOKENS_EVERY)

    async def respond(self, request: Request) -> Response:
        """Answer a request; raises nothing but cancellation."""
        task = asyncio.get_running_loop().create_task(self._handle(request))
        try:
            await asyncio.wait([task], timeout=self._limits.handling)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])
        answer = self._outcome(request, task)
        self.answers[answer.status] += 1
        return answer

    def body_limit(self, request: Request) -> int:
        """Return how many bytes a request's body may have, judged by its head alone."""
        if request.target in _LARGE:
            with contextlib.suppress(HttpError):
                if self._gate.judge(request) is Access.WRITER:
                    return self._limits.large_body
        return self._limits.body

    def _outcome(self, request: Request, task: asyncio.Task[Response]) -> Response:
        if task.cancelled():
            seconds = self._limits.handling
            return HttpError(503, "Timeout", f"no answer within {seconds:g} s; try again").answer
        error = task.exception()
        if error is None:
            return task.result()
        if isinstance(error, HttpError):
            return error.answer
        if isinstance(error, self._outages):
            why = str(error) or "no answer in time"
            full = isinstance(error, self._full)
            what = "etcd is full" if full else "etcd does not answer this master"
            return HttpError(503, "Unavailable", f"{what}: {why}").answer
        self.failures += 1
        log.error("%s %s failed", request.method, request.target[:200], exc_info=error)
        return HttpError(
            500, "InternalError", "this is a fault in Kontrol; its log has the details"
        ).answer

    async def _handle(self, request: Request) -> Response:
        hosts.check(request, self._names)
        wrong: HttpError | None = None
        access = Access.ANYONE
        try:
            access = self._gate.judge(request)
        except HttpError as error:
            wrong = error
        now = asyncio.get_running_loop().time()
        path, query = _parts(request.target)
        limited = access < Access.READER and path not in _PROBES
        if limited and not self._rate.allow(request.peer, now):
            raise HttpError(
                429,
                "TooManyRequests",
                f"more than {self._limits.rate:g} requests per second from {request.peer}; slow "
                "down, or send a token",
                (("Retry-After", "1"),),
            )
        route, names, allow = self._router.find(request.method, path)
        if route is None:
            return Response(204, headers=(("Allow", allow),))
        if route.least > Access.ANYONE:
            if wrong is not None:
                self._log_bad_token(request, now)
                raise wrong
            self._gate.require(access, route.least)
        return await route.handle(
            self._handlers, ApiRequest(request, access, names, _query(query, route))
        )

    def _log_bad_token(self, request: Request, now: float) -> None:
        """Log wrong tokens at a limited rate: they may come from anywhere, in any number."""
        held = self._bad_tokens.admit(now)
        if held is not None:
            log.warning(
                "REST: %d requests came with a token that is not in the token file, the last "
                "from %s",
                held + 1,
                request.peer,
            )


def _parts(target: str) -> tuple[str, str]:
    """Return the path and the query of a target, in any of the forms of RFC 9112, 3.2."""
    _, separator, rest = target.partition("://")
    if separator and not target.startswith("/"):
        target = "/" + rest.partition("/")[2]
    path, _, query = target.partition("?")
    if not _PATH.match(path):
        raise HttpError(
            400, "BadTarget", f"{target[:80]!r} is not a target; expected a path, as /v1"
        )
    return path, query


def _query(text: str, route: Route) -> dict[str, str]:
    """Return the parameters of a query; only those of the route, each once."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True, max_num_fields=16)
    except ValueError as error:
        if not text:
            return {}
        raise HttpError(400, "BadQuery", f"{text[:80]!r} is not a query: {error}") from None
    known = ", ".join(route.query) or "none"
    for name, _ in pairs:
        if name not in route.query:
            raise HttpError(
                400,
                "BadQuery",
                f"{name[:40]!r} is not a parameter of {route.path}; expected {known}",
            )
    if len(dict(pairs)) < len(pairs):
        raise HttpError(400, "BadQuery", f"a parameter is repeated in {text[:80]!r}; expected once")
    return dict(pairs)
