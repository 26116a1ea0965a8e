from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.boot.cluster import Cluster, account, running

from kontrol.boot.cluster import Sources
from kontrol.boot.kubernetes import ServiceAccount
from kontrol.boot.retry import Retry


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with running() as cluster:
        yield cluster


@pytest.fixture
def sources(cluster: Cluster, tmp_path: Path) -> Sources:
    return Sources(
        environ=cluster.environ(),
        system={"KONTROL_ID": "redis-0", "KONTROL_IP": "192.0.2.7"},
        machine={"sys_vendor": "QEMU"},
        retry=Retry(20, first=0.01, most=0.05),
        account=ServiceAccount(account(tmp_path / "account")),
        podinfo=tmp_path / "podinfo",
        providers={},
    )
