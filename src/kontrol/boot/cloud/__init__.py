"""Clouds: which one this machine is part of, and what its metadata service says of the machine.

A new cloud is a file here with a class that has the two methods of `Provider`, a row in
`PROVIDERS`, and a paragraph in docs/boot.rst. Querying never fails the boot: a cloud that does not
answer is a line in the log.

Detection is quick. Where the firmware's tables can be read, they name the cloud, and only that one
is queried; on any other machine, none is. Only without such tables (a sandbox, some containers) are
all queried at the same time, briefly: on a cloud the service is one hop away.
"""

import asyncio
import difflib
import logging
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from kontrol.boot.cloud.aws import Aws
from kontrol.boot.cloud.azure import Azure
from kontrol.boot.cloud.google import Google
from kontrol.boot.cloud.provider import BadMetadata, MakeProvider, Provider
from kontrol.boot.facts import Machine
from kontrol.httpclient import HTTPError
from kontrol.settings import variables as v
from kontrol.settings.resolve import Resolved

__all__ = ["PROVIDERS", "Machine", "MakeProvider", "Provider", "check_name", "detect", "firmware"]

log = logging.getLogger(__name__)

PROVIDERS: Mapping[str, MakeProvider] = {
    "aws": Aws,
    "aws-v1": partial(Aws, token=False),
    "google": Google,
    "azure": Azure,
}
"""The table of clouds: what KONTROL_CLOUD calls each, and how to make its provider."""

_NOT_DETECTED = {"aws-v1"}
_DMI = Path("/sys/class/dmi/id")  # what the firmware says of the machine, a file for each field
_FIELDS = ("sys_vendor", "product_name", "bios_version", "chassis_asset_tag")
_SURE = 3.0  # seconds for a cloud that is known to be there
_UNSURE = 0.7  # seconds for all of them, where there may be none


def check_name(resolved: Resolved) -> None:
    """Add a mistake if KONTROL_CLOUD is the name of no cloud. Settings do not know which exist."""
    name = resolved.get(v.CLOUD)
    known = ("auto", "none", *PROVIDERS)
    if name is not None and name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        resolved.refuse(v.CLOUD, f"one of {', '.join(known)}{hint}")


def firmware(folder: Path = _DMI) -> dict[str, str]:
    """Return what the firmware says of the machine's maker; empty if it cannot be read."""
    found: dict[str, str] = {}
    for name in _FIELDS:
        try:
            text = (folder / name).read_text("utf-8", "replace").strip()
        except OSError:
            continue
        if text:
            found[name] = text
    return found


async def detect(
    choice: str,
    machine: Mapping[str, str],
    providers: Mapping[str, MakeProvider] = PROVIDERS,
    timeout: float = math.inf,
) -> tuple[str, Machine] | None:
    """Return the cloud's name and what it says of the machine, None without a cloud.

    `choice` is the value of KONTROL_CLOUD; `machine` is what the firmware says; it takes at most
    `timeout` seconds.
    """
    if choice == "none":
        return None
    sure, unsure = min(_SURE, timeout), min(_UNSURE, timeout)
    if choice != "auto":
        return await _query({choice: providers[choice]()}, sure, sure=True)
    candidates = {name: make() for name, make in providers.items() if name not in _NOT_DETECTED}
    matching = {name: each for name, each in candidates.items() if each.matches(machine)}
    if matching:
        return await _query(matching, sure, sure=True)
    if machine:
        maker = ", ".join(dict.fromkeys(machine.values()))
        log.debug("no cloud: the firmware says %s", maker)
        return None
    return await _query(candidates, unsure, sure=False)


async def _query(
    providers: Mapping[str, Provider], timeout: float, *, sure: bool
) -> tuple[str, Machine] | None:
    """Query all at the same time; return the first in the table that answered."""
    answers = await asyncio.gather(*(_describe(each, timeout) for each in providers.values()))
    reasons: dict[str, list[str]] = {}
    for name, answer in zip(providers, answers, strict=True):
        if isinstance(answer, Machine):
            return name, answer
        reasons.setdefault(answer, []).append(name)
    text = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
    if sure:
        log.warning("no facts of the node from the cloud: %s", text)
    else:
        log.info("no cloud found: %s", text)
    return None


async def _describe(provider: Provider, timeout: float) -> Machine | str:
    """Return what a provider says of the machine, or why it says nothing."""
    try:
        async with asyncio.timeout(timeout):
            return await provider.describe(timeout)
    except TimeoutError:
        return f"no complete answer within {timeout:g} s"
    except (HTTPError, BadMetadata) as error:
        return str(error)
