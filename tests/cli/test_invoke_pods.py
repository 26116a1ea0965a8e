"""Where the pods come from, and in whose name `kontrol invoke` asks."""

import json
from pathlib import Path

import pytest
from tests.rpc.keyed import cluster, part
from tests.rpc.support import serving

from kontrol.cli.invoke.targets import NoMaster, find
from kontrol.ensemble.tiers import Tier
from kontrol.rpc.errors import Refused
from kontrol.rpc.methods import Call
from kontrol.rpc.security.keys import KeysError
from kontrol.settings import SettingsError

ANNOTATION = {"KONTROL_ANNOTATIONS": '{"kontrol.unity3d.com/master": "masters:8010,other"}'}
MASTER = {"KONTROL_MODE": "master"}
LISTS = ("masters", "agents", "operators")


@pytest.mark.parametrize(
    ("environ", "master", "tier"),
    [
        ({}, None, Tier("127.0.0.1", 8000)),
        ({"KONTROL_PORT": "8005"}, None, Tier("127.0.0.1", 8005)),
        (ANNOTATION, None, Tier("masters", 8010)),
        ({**ANNOTATION, "KONTROL_MASTER": "m1|m2:9"}, None, Tier("m1|m2", 9)),
        ({**ANNOTATION, "KONTROL_MASTER": "m1"}, "[fd00::1]:7", Tier("fd00::1", 7)),
        ({"KONTROL_PORT": "8005"}, "https://m1:8443", Tier("m1", 8005)),
        ({}, "http://[fd00::1]:8001|http://m2", Tier("fd00::1|m2", 8000)),
        ({"KONTROL_MODE": "nonsense", "KONTROL_TTL": "x"}, "m1", Tier("m1", 8000)),
        # As `status` does: where this host's own endpoint listens, and a master first of all.
        ({"KONTROL_BIND": "10.0.0.7"}, None, Tier("10.0.0.7", 8000)),
        ({"KONTROL_BIND": "::"}, None, Tier("::1", 8000)),
        ({"KONTROL_BIND": "10.0.0.7"}, "m1", Tier("m1", 8000)),
        ({**ANNOTATION, **MASTER}, None, Tier("127.0.0.1", 8000)),
        (
            {**ANNOTATION, **MASTER, "KONTROL_PORT": "8010", "KONTROL_BIND": "fd00::7"},
            None,
            Tier("fd00::7|masters", 8010),
        ),
    ],
)
def test_the_tier_is_the_first_that_is_named(
    environ: dict[str, str], master: str | None, tier: Tier
) -> None:
    place = find(environ, master)
    assert (place.tier, place.pods_file, place.fence) == (tier, None, {})


@pytest.mark.parametrize(
    ("environ", "master", "says"),
    [
        ({"KONTROL_PORT": "x"}, None, "KONTROL_PORT"),
        ({}, "a/b", "--master"),
        ({"KONTROL_MASTER": "a b"}, None, "KONTROL_MASTER"),
        ({"KONTROL_MASTER": "http://"}, None, "KONTROL_MASTER"),
    ],
)
def test_what_is_wrong_is_named(environ: dict[str, str], master: str | None, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        find(environ, master)
    assert says in str(caught.value)


async def test_a_callback_has_its_pods_and_its_fence(tmp_path: Path) -> None:
    path = tmp_path / "pods.json"
    path.write_text('[{"id": "a"}]', encoding="utf-8")
    environ = {"TIER": "ns/app", "TERM_ID": "5", "RUN": "7", "PODS_FILE": str(path)}
    place = find({**environ, "KONTROL_MASTER": "m1"}, None)
    assert await place.pods() == [{"id": "a"}]
    assert place.fence == {"tier": "ns/app", "term": 5, "run": 7}
    asked = find(environ, "m2")
    assert (asked.tier.host, asked.pods_file, asked.fence) == ("m2", None, place.fence)
    assert find({**environ, "RUN": ""}, None).fence == {}
    with pytest.raises(SettingsError, match="TERM_ID"):
        find({**environ, "TERM_ID": "five"}, None)
    path.unlink()
    with pytest.raises(NoMaster, match=r"PODS_FILE .*No such file"):
        await place.pods()


def test_asks_as_an_operator_else_as_a_master(tmp_path: Path) -> None:
    whole = cluster(tmp_path / "keys")
    for kind in ("operator", "master"):
        keys = part(tmp_path / kind, whole, f"{kind}.secret", *LISTS)
        assert find({"KONTROL_KEYS": str(keys)}, None).asker.kind == kind
    assert find({"KONTROL_KEYS": str(whole)}, None).asker.kind == "operator"
    callback = {"TIER": "ns/app", "TERM_ID": "5", "RUN": "7", "PODS_FILE": "pods.json"}
    assert find({"KONTROL_KEYS": str(whole), **callback}, None).asker.kind == "master"
    agent = part(tmp_path / "agent", whole, "agent.secret", *LISTS)
    with pytest.raises(KeysError, match=r"operator\.secret.*--kind operator"):
        find({"KONTROL_KEYS": str(agent)}, None)


async def test_every_master_of_the_tier_is_asked() -> None:
    async def pods(call: Call, *fields: object) -> object:
        asked.append(fields)
        return [{"id": "a"}]

    asked: list[tuple[object, ...]] = []
    async with serving({"pods": pods}, heartbeat=5) as port:
        place = find({}, f"127.0.0.2|127.0.0.1:{port}")
        assert await place.pods("payload") == [{"id": "a"}]
    assert asked == [("id", "key", "seq", "role", "ip", "port", "nonce", "payload")]


async def test_says_which_masters_were_asked_without_effect() -> None:
    async def pods(call: Call, *fields: object) -> object:
        raise Refused("Forbidden", "not you")

    async with serving({"pods": pods}, heartbeat=5) as port:
        with pytest.raises(NoMaster) as caught:
            await find({}, f"127.0.0.2|127.0.0.1:{port}").pods()
        assert "127.0.0.2:" in str(caught.value)
        assert "127.0.0.1: Forbidden: not you. Name one with --master" in str(caught.value)

    async def odd(call: Call, *fields: object) -> object:
        return json.loads('{"pods": []}')

    async with serving({"pods": odd}, heartbeat=5) as port:
        with pytest.raises(NoMaster, match="did not answer with a list of pods"):
            await find({}, f"127.0.0.1:{port}").pods()


async def test_a_master_steers_no_terminal_and_forges_no_line() -> None:
    async def pods(_call: Call, *_fields: object) -> object:
        raise Refused("Busy", "\x1b]0;owned\x07\u202e\nkontrol: all is well")

    async with serving({"pods": pods}) as port:
        with pytest.raises(NoMaster) as caught:
            await find({}, f"127.0.0.1:{port}").pods()
    assert str(caught.value).isprintable()
    assert r"\x1b]0;owned\x07\u202e\nkontrol: all is well" in str(caught.value)
