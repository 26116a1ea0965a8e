"""Clouds: which one this machine is of, and what its metadata service tells of the machine.

A provider is one file with a class that has the two methods of `Provider`, and one row in
`PROVIDERS`. Asking never fails the boot: a cloud that does not answer is a line in the log.

Detection is quick. Where the firmware's tables can be read they name the cloud, and only that one
is asked; a machine of another maker is of no cloud, and nothing is asked. Only where there are no
such tables (a sandbox, some containers) are all asked at once, for a moment: on a cloud the
service is a hop away.
"""

import asyncio
import logging
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from kontrol.boot.cloud.aws import Aws
from kontrol.boot.cloud.azure import Azure
from kontrol.boot.cloud.google import Google
from kontrol.boot.cloud.provider import BadMetadata, Make, Provider
from kontrol.boot.facts import Machine
from kontrol.boot.http import HTTPError
from kontrol.boot.places import DMI

__all__ = ["PROVIDERS", "Machine", "Make", "Provider", "detect", "firmware"]

log = logging.getLogger(__name__)

_FIELDS = ("sys_vendor", "product_name", "bios_version", "chassis_asset_tag")

PROVIDERS: Mapping[str, Make] = {
    "aws": Aws,
    "aws-v1": partial(Aws, token=False),
    "google": Google,
    "azure": Azure,
}
"""The clouds by the name that KONTROL_CLOUD has for each."""

_BY_NAME_ONLY = {"aws-v1"}
_SURE = 3.0  # seconds for a cloud that is known to be there
_UNSURE = 0.7  # seconds for all of them, where there may be none


def firmware(folder: Path = DMI) -> dict[str, str]:
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
    providers: Mapping[str, Make] = PROVIDERS,
    limit: float = math.inf,
) -> tuple[str, Machine] | None:
    """Return the cloud's name and what it tells, None without one.

    `choice` is the value of KONTROL_CLOUD; `machine` is what the firmware says; it takes no longer
    than `limit` seconds.
    """
    if choice == "none":
        return None
    sure, unsure = min(_SURE, limit), min(_UNSURE, limit)
    if choice != "auto":
        return await _ask({choice: providers[choice]()}, sure, sure=True)
    all_of_them = {name: make() for name, make in providers.items() if name not in _BY_NAME_ONLY}
    made = {name: each for name, each in all_of_them.items() if each.made(machine)}
    if made:
        return await _ask(made, sure, sure=True)
    if machine:
        maker = ", ".join(dict.fromkeys(machine.values()))
        log.debug("no cloud: the firmware says %s", maker)
        return None
    return await _ask(all_of_them, unsure, sure=False)


async def _ask(
    providers: Mapping[str, Provider], timeout: float, *, sure: bool
) -> tuple[str, Machine] | None:
    """Ask all at once; return the first in the table that answered."""
    answers = await asyncio.gather(*(_describe(each, timeout) for each in providers.values()))
    reasons: dict[str, list[str]] = {}
    for name, answer in zip(providers, answers, strict=True):
        if isinstance(answer, Machine):
            return name, answer
        reasons.setdefault(answer, []).append(name)
    text = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
    if sure:
        log.warning("the cloud told nothing of the node: %s", text)
    else:
        log.info("no cloud found: %s", text)
    return None


async def _describe(provider: Provider, timeout: float) -> Machine | str:
    """Return what a provider tells, or why it tells nothing."""
    try:
        async with asyncio.timeout(timeout):
            return await provider.describe(timeout)
    except TimeoutError:
        return f"no whole answer within {timeout:g} s"
    except (HTTPError, BadMetadata) as error:
        return str(error)
