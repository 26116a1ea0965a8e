"""The interface of a cloud's metadata service, and the functions that all of them share."""

import re
from collections.abc import Callable, Mapping
from typing import Protocol

from kontrol.boot.facts import Machine
from kontrol.ensemble.canonical import JSON, NotJSON, parse
from kontrol.httpclient import Response, request
from kontrol.settings import values

LINK_LOCAL = "http://169.254.169.254"  # where AWS, Azure and Google all have it
_MOST = 262_144  # octets
_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,252}\Z")


class BadMetadata(Exception):
    """The service is not this cloud's, or says nothing useful; the message says why."""


class Provider(Protocol):
    """One cloud's metadata service."""

    def matches(self, machine: Mapping[str, str]) -> bool:
        """Return whether the firmware's fields are those of this cloud's machines."""

    async def describe(self, timeout: float) -> Machine:
        """Return what the service says of the machine, within `timeout` seconds.

        Raises `BadMetadata`, and `HTTPError` of `kontrol.httpclient`. It must not accept the
        answers of another service: a captive portal answers every request with a page.
        """


MakeProvider = Callable[[], Provider]


async def fetch(
    url: str, headers: Mapping[str, str], timeout: float, *, method: str = "GET"
) -> Response:
    """Send a request to a metadata service. Raises `HTTPError`."""
    return await request(url, method=method, headers=headers, timeout=timeout, limit=_MOST)


def document(answer: Response, what: str) -> dict[str, JSON]:
    """Return the JSON object of an answer. Raises `BadMetadata`."""
    if answer.status != 200:
        raise BadMetadata(f"{what}: status {answer.status}")
    try:
        value = parse(answer.body, depth=32)
    except NotJSON as error:
        raise BadMetadata(f"{what}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadMetadata(f"{what}: not a JSON object")
    return value


def word(value: object) -> str | None:
    """Return a name of the form that clouds use, None if it is not one."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    if not isinstance(text, str):
        return None
    text = text.strip()
    return text if _NAME.match(text) else None


def address(value: object) -> str | None:
    """Return an address, None if it is not one."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    if not isinstance(text, str):
        return None
    try:
        return values.address(text.strip())
    except values.BadValue:
        return None
