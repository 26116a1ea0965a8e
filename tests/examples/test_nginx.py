"""The balancer that follows a published list, under load: real servers, masters and etcd."""

import pytest
from examples.ensemble import Screen
from examples.nginx.shop import shop

pytestmark = [pytest.mark.equipped("nginx"), pytest.mark.timeout(300)]


async def test_no_request_fails_while_backends_join_leave_and_are_killed() -> None:
    async with shop(Screen(), clients=8) as made:
        results = [await made.join("web-4"), await made.leave("web-1")]
        assert not made.balancer.find("upstream"), "nginx had to repeat a request"
        results.append(await made.kill("web-2"))
        assert made.balancer.find("upstream"), "nginx had to repeat none"
        last = made.requests.done[-200:]
    for result in results:
        assert result.requests
        assert not result.failed, result.what
    # The one that joined got requests, and only those that are left get any.
    assert {each.backend for each in results[0].requests} == {f"web-{n}" for n in (1, 2, 3, 4)}
    assert {each.backend for each in last} == {"web-3", "web-4"}
