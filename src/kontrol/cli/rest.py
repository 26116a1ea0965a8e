"""Ask masters over REST, one after the other, until one answers.

The token goes to the masters that were named and nowhere else: redirects are not followed, and the
environment's proxies are not asked. Something that changes the ensemble is sent once: where the
answer to it is lost, no other master is asked to do it again.

Every failure is a `RestError` that says what was asked, what came, and the fix.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

from kontrol.cli.address import Endpoint
from kontrol.cli.command import LOST, NOTHING, REFUSED, UNANSWERED, USAGE
from kontrol.cli.exchange import LIMIT, PORTS, Late, NoAnswer, Unable, addresses, exchange
from kontrol.ensemble.canonical import JSON, NotJSON
from kontrol.ensemble.canonical import parse as parse_json
from kontrol.httpclient import Request, Response, TooLong
from kontrol.settings import Mistake, SettingsError
from kontrol.settings import variables as v
from kontrol_common.text import escaped

_DEPTH = 200  # twice what a state may have
_TOKEN = 4096  # characters of a token
_LONGEST = 1000  # characters that are shown of a master's words
_NOTHING = ("NoSuchPod", "NoSuchRun", "NoSuchKey")  # errors of REST that mean: nothing matched
_NO_MASTER = (
    f"\nA running master serves REST unless {v.HTTP_PORT.name} is 0. --master or {v.MASTER.name} "
    "names the masters to ask: host, or http(s)://host:port"
)
_LATE = (
    "\nA master that accepts the connection and does not answer is stuck, or its host is slow: see "
    "its log; --timeout waits longer"
)

# What to do where a token is missing or insufficient, by the error's name.
_DENIED = {
    "TokenRequired": (
        "{endpoint} requires a token for this, and none is set here. Set "
        f"{v.TOKEN_FILE.name} to a file whose first line is the masters' token: on a master, the "
        "file that its own setting names (in Kubernetes a Secret, mounted there). Or run this "
        "command in a master's container, which has it"
    ),
    "BadToken": (
        "the token {held} is not one of the masters' at {endpoint}. It must be a line of the file "
        f"that {v.TOKEN_FILE.name} names on the masters"
    ),
    "ReadOnlyToken": (
        f"the token {{held}} may only read. To change something, {v.TOKEN_FILE.name} must name a "
        "file here that begins with the first line of the masters' token file"
    ),
    "NoTokenFile": (
        "this requires a token, and the master at {endpoint} has no token file. Run the command "
        "where that master runs, as its user (in its container, say): there it needs nothing, and "
        f"{v.TOKEN_FILE.name} must not be set. Or make a file with `(umask 077; head -c 32 "
        f"/dev/urandom | base64 > token)`, and have {v.TOKEN_FILE.name} name it on every master "
        "(restart them), and here"
    ),
}


class RestError(Exception):
    """No useful answer. `exit_status` is what a command that cannot go on ends with."""

    def __init__(self, text: str, exit_status: int = UNANSWERED) -> None:
        super().__init__(text)
        self.exit_status = exit_status


class ApiAnswer(NamedTuple):
    """A master's answer: its HTTP status (200 to 299), the document, and the master.

    `silent` lists the masters that were asked before it and did not answer.
    """

    status: int
    document: dict[str, JSON]
    endpoint: Endpoint
    silent: tuple[str, ...] = ()


class Rest:
    """A client of the masters at `endpoints`. The one that answered last is asked first."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        token: str | None = None,
        token_file: Path | None = None,
        own: Callable[[Endpoint], str | None] = lambda _endpoint: None,
        ca: Path | None = None,
        timeout: float = 5.0,
        tell: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """`timeout` is in seconds, for one answer; `tell` is called with the result of each try.

        Without a `token` from `token_file`, `own` may know that of an endpoint on this host.
        """
        self._endpoints = list(endpoints)
        self._headers = {"Accept": "application/json"}
        self._token = token
        self._token_file = token_file
        self._own = own
        self._ca = ca
        self._timeout = timeout
        self._tell = tell

    def get(self, path: str, **query: int | str) -> ApiAnswer:
        """Read. Raises `RestError`."""
        path = f"{path}?{urlencode(query)}" if query else path
        return self._ask(Request("GET", path, headers=self._headers), self._timeout)

    def post(self, path: str, body: Mapping[str, JSON], *, wait: float) -> ApiAnswer:
        """Change something; `wait` is for how many seconds the master itself may wait.

        Raises `RestError`.
        """
        headers = {**self._headers, "Content-Type": "application/json"}
        # Not longer than the values are; a lone surrogate becomes an escape, which is refused.
        raw = json.dumps(body, ensure_ascii=False).encode("utf-8", "backslashreplace")
        request = Request("POST", path, raw, headers)
        return self._ask(request, self._timeout + wait)

    def _ask(self, request: Request, seconds: float) -> ApiAnswer:
        failures: list[NoAnswer] = []
        for endpoint in tuple(self._endpoints):
            try:
                answer = self._ask_all(endpoint, request, seconds, failures)
            except NoAnswer as error:
                self._note(f"{endpoint}{request.path}", error, failures)
                continue
            if answer is not None:
                self._endpoints.remove(endpoint)
                self._endpoints.insert(0, endpoint)
                return answer._replace(silent=tuple(map(str, failures)))
        fix = _NO_MASTER
        if any(isinstance(error, Late) for error in failures):
            fix = _LATE
        elif any(error.explained for error in failures):
            fix = ""
        unable = failures and all(isinstance(error, Unable) for error in failures)
        head = "no master can do this now:" if unable else "no master answered:"
        raise RestError("\n  ".join([head, *map(str, failures)]) + fix)

    def _ask_all(
        self, endpoint: Endpoint, request: Request, seconds: float, failures: list[NoAnswer]
    ) -> ApiAnswer | None:
        """Ask each address behind one name. Raises `NoAnswer` if the name has none, `RestError`."""
        if token := self._token or self._own(endpoint):
            headers = {**request.headers, "Authorization": f"Bearer {token}"}
            request = replace(request, headers=headers)
        for address in addresses(endpoint):
            url = f"{endpoint}{request.path}" + (
                "" if address == endpoint.host else f" at {address}"
            )
            try:
                response = exchange(endpoint, address, request, seconds, self._ca)
                answer = _judge(f"{request.method} {url}", endpoint, response, self._token_file)
            except TooLong:
                raise RestError(
                    f"{request.method} {url}: the answer is over {LIMIT} bytes, the most that is "
                    "read"
                ) from None
            except NoAnswer as error:
                self._note(url, error, failures)
                if error.sent and request.method == "POST":
                    raise RestError(
                        f"{request.method} {failures[-1]}. It may have been done all the same: "
                        "check `kontrol status` before you try again"
                    ) from None
                continue
            self._tell(f"{url} answered")
            return answer
        return None

    def _note(self, url: str, error: NoAnswer, failures: list[NoAnswer]) -> None:
        failure = type(error)(f"{url}: {error}", sent=error.sent, explained=error.explained)
        failures.append(failure)
        self._tell(str(failure))


def read_token(path: Path | None) -> str | None:
    """Return the first line of a token file. Raises `SettingsError`."""
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            raw = file.readline(_TOKEN + 1)
    except OSError as error:
        raise _wrong_token(path, f"a file that can be read: {_reason(error)}") from None
    text = raw.strip().decode("latin-1")
    if not (text.isascii() and text.isprintable()) or " " in text or not text:
        raise _wrong_token(path, "a file whose first line is a token of printable ASCII")
    if len(raw) > _TOKEN:
        raise _wrong_token(path, f"a token of at most {_TOKEN} characters")
    return text


def check_ca(path: Path | None) -> None:
    """Raise `SettingsError` if the file holds no certificates."""
    if path is None:
        return
    import ssl

    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:
        expected = f"a PEM file with certificates: {_reason(error)}"
        raise SettingsError([Mistake("--ca", str(path), expected)]) from None


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _wrong_token(path: Path, expected: str) -> SettingsError:
    return SettingsError([Mistake(v.TOKEN_FILE.name, str(path), expected)])


def _judge(
    asked: str, endpoint: Endpoint, response: Response, token_file: Path | None
) -> ApiAnswer:
    """Judge a response. Raises `RestError`, or `NoAnswer` if another master may answer."""
    status = response.status
    if 300 <= status < 400:
        to = escaped(response.headers.get("location", "")[:_LONGEST])
        raise RestError(
            f"{asked}: redirected to {to!r}, which is not followed: name that address instead"
        )
    what = "JSON of another kind"
    try:
        document = parse_json(response.body, depth=_DEPTH)
    except NotJSON as error:
        document, what = None, f"no JSON: {escaped(str(error)[:80])}"
    if not isinstance(document, dict):
        kind = escaped(response.headers.get("content-type", "")[:80]) or "no content type"
        raise RestError(
            f"{asked}: status {status} and {kind}, {what}. That is not a Kontrol master: {PORTS}, "
            "unless there is a proxy in front of it"
        )
    if 200 <= status < 300:
        return ApiAnswer(status, document, endpoint)
    name, message = _error_of(document)
    if status >= 500:
        raise Unable(f"status {status}: {message}", sent=status != 503, explained=True)
    if denied := _DENIED.get(name):
        held = "that was sent" if token_file is None else f"in {token_file} ({v.TOKEN_FILE.name})"
        raise RestError(denied.format(endpoint=endpoint, held=held), REFUSED)
    if status == 409:
        raise RestError(f"refused: {message}", REFUSED)
    if status == 412:
        raise RestError(message, LOST)
    if name in _NOTHING:
        raise RestError(message, NOTHING)
    raise RestError(f"{asked}: status {status}: {message}", _exit_status(status))


def _exit_status(status: int) -> int:
    """Return the exit status of a command that a master refuses."""
    return {400: USAGE, 404: UNANSWERED}.get(status, REFUSED)  # 404 is an agent, or an older master


def _error_of(document: Mapping[str, JSON]) -> tuple[str, str]:
    """Return the error's name and the master's message, escaped and bounded."""
    error = document.get("error")
    if not isinstance(error, dict):
        return "", "it does not say why"
    text = escaped(str(error.get("message", ""))[:_LONGEST])
    if error.get("name") == "NoSuchPath":  # its message lists the paths that it has
        text = (
            "it is of another version, and does not know this: upgrade it, or name one of this "
            "version with --master"
        )
    return str(error.get("name")), text or "it does not say why"
