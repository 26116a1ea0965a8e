"""What tests on a discovery share."""

from dataclasses import replace

from tests.boot.cluster import TOKEN

from kontrol.boot import BootError
from kontrol.boot.cluster import Sources
from kontrol.boot.retry import Retry
from kontrol.boot.run import Findings, discover


def hurried(sources: Sources) -> Sources:
    return replace(sources, retry=Retry(0.2, first=0.01, most=0.05))


def texts(found: Findings) -> dict[str, str]:
    assert found.problem is None
    return {name: fact.text for name, fact in found.facts.items()}


async def problem(sources: Sources) -> BootError:
    found = (await discover(sources)).problem
    assert found is not None
    assert "\n" not in str(found)
    assert TOKEN not in str(found)
    return found
