"""Telegraf's configuration, from labels and an annotation: rendered here, written at boot.

Labels `app`, `role`, `*unity3d.com*` and `*/hostname` of node and pod become global tags without
their prefix (up to the slash); the pod's take precedence over the node's. Metrics go to the
OpenTSDB that the pod's annotation names; without it there is no configuration.
"""

import contextlib
import os
import tempfile
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from kontrol.ensemble.tiers import BadTiers, parse_tiers

ANNOTATION = "kontrol.unity3d.com/opentsdb"
_PORT = 4242  # OpenTSDB's own
_SCHEMES = ("tcp", "http", "https")  # those that telegraf knows; tcp is OpenTSDB's telnet form
_ACCEPTED = ("app", "role", "*unity3d.com*", "*/hostname")
_MODE = 0o644

# Telegraf replaces `$...` by variables and `@{...}` by secrets before it reads TOML, and some
# versions remove comments that way: these characters are written as escapes in strings.
_ESCAPED = '"\\$@#'

_AGENT = """\
[agent]
interval = "10s"
round_interval = true
metric_batch_size = 1000
metric_buffer_limit = 10000
collection_jitter = "0s"
flush_interval = "10s"
flush_jitter = "0s"
quiet = true
"""


class BadAnnotation(ValueError):
    """The annotation does not name an OpenTSDB; the message has it and what is expected."""


class OpenTSDB(NamedTuple):
    """Where metrics go. `url` is telegraf's: scheme and host, IPv6 in brackets."""

    url: str
    port: int


class Metrics(NamedTuple):
    """Where Kontrol's own metrics are served, on this pod."""

    address: str
    port: int
    tls: bool


def opentsdb(text: str) -> OpenTSDB:
    """Parse the annotation: host or host:port, with an optional scheme before it.

    Raises `BadAnnotation`.
    """
    scheme, separator, rest = text.strip().rpartition("://")
    try:
        tiers = parse_tiers(rest.removesuffix("/"), _PORT)
    except BadTiers:
        tiers = ()
    known = scheme.lower() in _SCHEMES if separator else True
    if not known or len(tiers) != 1 or len(tiers[0].hosts) != 1:
        raise BadAnnotation(
            f"annotation {ANNOTATION}={text!r}: expected one host or host:port (port {_PORT} if "
            "none is given), as opentsdb.monitoring.svc"
        )
    host, port = tiers[0]
    return OpenTSDB(f"{scheme.lower() or 'tcp'}://{f'[{host}]' if ':' in host else host}", port)


def tags(node_labels: Mapping[str, str], pod_labels: Mapping[str, str]) -> dict[str, str]:
    """Return the global tags by name, sorted; labels without a value are left out."""
    found: dict[str, str] = {}
    for labels in (node_labels, pod_labels):
        for key, value in sorted(labels.items()):
            name = key.partition("/")[2] or key
            if value and any(fnmatchcase(key, pattern) for pattern in _ACCEPTED):
                found[name] = value
    return dict(sorted(found.items()))


def render(target: OpenTSDB, global_tags: Mapping[str, str], metrics: Metrics | None) -> str:
    """Return the configuration, TOML."""
    lines = ["# Written by kontrol boot from the pod's labels and annotations.", "[global_tags]"]
    lines += [f"{quote(key)} = {quote(value)}" for key, value in global_tags.items()]
    lines += ["", _AGENT, "[[outputs.opentsdb]]"]
    lines += [f"host = {quote(target.url)}", f"port = {target.port}"]
    if metrics is not None:
        host = f"[{metrics.address}]" if ":" in metrics.address else metrics.address
        scheme = "https" if metrics.tls else "http"
        url = f"{scheme}://{host}:{metrics.port}/metrics"
        lines += ["", "[[inputs.prometheus]]", f"urls = [{quote(url)}]", "metric_version = 2"]
        if metrics.tls:  # Kontrol's own certificate may not name this address
            lines += ["insecure_skip_verify = true"]
    return "\n".join([*lines, ""])


def quote(text: str) -> str:
    """Return any `text` as a basic string of TOML."""
    return f'"{"".join(_escape(char) for char in text)}"'


def _escape(char: str) -> str:
    code = ord(char)
    if char.isprintable() and char not in _ESCAPED:
        return char
    if 0xD800 <= code < 0xE000:  # a lone surrogate is not allowed in TOML
        return "\N{REPLACEMENT CHARACTER}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def write(path: Path, text: str | None) -> None:
    """Write the configuration atomically; None removes it.

    Raises `OSError`.
    """
    if text is None:
        path.unlink(missing_ok=True)
        return
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, _MODE)
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
