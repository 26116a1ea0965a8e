"""What a master answers over ZeroRPC, by the key of the client."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from kontrol.daemon.wire_master import master_methods
from kontrol.ensemble.canonical import JSON
from kontrol.rpc.errors import Refused
from kontrol.rpc.events import Result
from kontrol.rpc.limits import Limits
from kontrol.rpc.methods import Call, Signature
from kontrol.rpc.security.keys import Kind
from kontrol.rpc.wire import Codec, Message
from kontrol.store.protocol import Unavailable
from kontrol.web import redaction

POD: dict[str, JSON] = {
    "app": "a",
    "id": "redis-1",
    "ip": "10.0.0.1",
    "key": "k",
    "role": "r",
    "seq": 7,
    "nonce": "a" * 24,
    "port": 8000,
    "eip": "192.0.2.1",
    "node": "n1",
    "zone": "z1",
    "version": "1.0",
    "payload": "secret",
    "annotation": "secret",
}


def some(count: int, error: Exception | None = None) -> Any:  # noqa: ANN401
    """A master of so many pods, which have live facts."""

    async def pods_with_facts() -> list[dict[str, object]]:
        if error is not None:
            raise error
        return [{**POD, "live": "secret facts"}] * count

    return SimpleNamespace(pods=lambda: [POD] * count, pods_with_facts=pods_with_facts)


async def pods(caller: Kind | None, *fields: object, count: int = 1) -> Any:  # noqa: ANN401
    master = some(count)
    call = Call("pods", fields, "10.0.0.9#0", caller)
    return await cast("Any", master_methods(master)["pods"](call, *fields))


@pytest.mark.parametrize("caller", [None, "agent"])
async def test_unknown_clients_see_no_payload_however_they_ask(caller: Kind | None) -> None:
    for fields in ((), ("payload", "live", "annotation", "id"), ({"x": 1}, 7, None, b"payload")):
        assert "secret" not in str(await pods(caller, *fields))
    assert await pods(caller, "id", "payload") == [{"id": "redis-1"}]
    assert (await pods(caller))[0] == redaction.pod(POD)


@pytest.mark.parametrize("caller", [None, "agent"])
async def test_rpc_and_rest_show_the_same_of_a_pod_to_a_client_without_a_token(
    caller: Kind | None,
) -> None:
    [seen] = await pods(caller)
    assert seen == redaction.pod(POD)
    assert set(seen) == set(POD) - {"payload", "annotation"}
    assert await pods(caller, *POD) == [seen]


@pytest.mark.parametrize("caller", ["master", "operator"])
async def test_holders_of_keys_see_all_or_what_they_ask_for(caller: Kind) -> None:
    assert await pods(caller) == [{**POD, "live": "secret facts"}]
    assert await pods(caller, "live") == [{"live": "secret facts"}]
    assert await pods(caller, "payload", "none", {"x": 1}) == [{"payload": "secret"}]


async def test_pods_are_told_without_live_facts_if_etcd_does_not_answer() -> None:
    method = cast("Any", master_methods(some(1, Unavailable("away")))["pods"])
    assert await method(Call("pods", (), "10.0.0.9#0", "operator")) == [POD]


async def test_ten_thousand_pods_fit_an_answer() -> None:
    found = await pods("operator", "id", "key", "seq", "role", "ip", "port", "nonce", count=10_000)
    assert Codec(Limits()).encode(Message("1", "2", Result(found)))


async def test_unknown_clients_may_ask_for_all_pods_now_and_then() -> None:
    """A call is small, its answer is not, and unread answers are kept in memory."""
    master = some(1)
    method = cast("Any", master_methods(master)["pods"])
    for _ in range(20):
        assert await method(Call("pods", (), "10.0.0.9#0"))
    with pytest.raises(Refused, match=r"10\.0\.0\.9 calls .* less often") as refusal:
        await method(Call("pods", (), "10.0.0.9#1"))
    assert refusal.value.name == "Busy"
    assert await method(Call("pods", (), "10.0.0.8#2"))
    assert await method(Call("pods", (), "10.0.0.9#3", "operator"))


async def test_a_field_named_often_costs_once() -> None:
    class Looked(dict[str, object]):
        looks = 0

        def __contains__(self, name: object) -> bool:
            self.looks += 1
            return super().__contains__(name)

    pod = Looked(POD)
    master = cast("Any", SimpleNamespace(pods=lambda: [pod]))
    fields = ("id",) * 5000
    call = Call("pods", fields, "10.0.0.9#0")
    assert await cast("Any", master_methods(master)["pods"])(call, *fields) == [{"id": "redis-1"}]
    assert pod.looks == 1


def test_what_is_published_is_for_agents_alone_and_they_get_nothing_more_by_it() -> None:
    methods = {name: Signature.of(name, it) for name, it in master_methods(some(0)).items()}
    for caller, names in {
        None: {"ping", "published", "pods", "leader"},
        "agent": {"ping", "published", "pods", "leader"},
        "master": {"pods", "leader", "state"},
        "operator": {"pods", "leader", "state"},
    }.items():
        kind = cast("Kind | None", caller)
        assert {name for name, it in methods.items() if permits(it, kind)} == names


def permits(method: Signature, caller: Kind | None) -> bool:
    try:
        method.permit(caller)
    except Refused:
        return False
    return True
