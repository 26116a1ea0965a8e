"""The folder of keys: what is read of it, what is refused, how it changes, how it is made."""

import base64
import logging
import os
import re
import stat
from pathlib import Path

import pytest
import yaml
import zmq
from hypothesis import given
from hypothesis import strategies as st
from tests.rpc.keyed import cluster, part
from tests.rpc.zmtp.curve_by_hand import SMALL_ORDER
from zmq.utils import z85

from kontrol.rpc.security.keyfolder import NEEDS, make, manifest, rotate
from kontrol.rpc.security.keys import (
    FILES,
    KINDS,
    Keyring,
    KeysError,
    Kind,
    Pair,
    parse_list,
    parse_secret,
)

KEY = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"  # the public key in RFC 26's example


def test_a_list_is_keys_with_remarks_among_comments() -> None:
    other = Pair.make().public
    text = f"# masters\n\n{KEY}\n  {other}   of m2,  since May  \n"
    assert parse_list(text, "masters") == {KEY: "", other: "of m2,  since May"}


@pytest.mark.parametrize("line", ["abc", KEY[:-1], KEY + "x", KEY[:-1] + '"', KEY[:-1] + "é"])
def test_what_is_no_key_is_refused_by_file_and_line(line: str) -> None:
    with pytest.raises(KeysError, match=r"agents, line 2: .* 40 characters of Z85"):
        parse_list(f"# agents\n{line}\n", "agents")


@pytest.mark.parametrize("key", SMALL_ORDER)
def test_a_public_key_that_hides_nothing_is_refused_by_file_and_line(key: bytes) -> None:
    line = z85.encode(key).decode("ascii")
    with pytest.raises(KeysError, match=r"masters, line 1: .* is not a public key"):
        parse_list(f"{line} ours\n", "masters")


def test_a_key_of_too_large_a_number_is_refused() -> None:
    with pytest.raises(KeysError):
        parse_secret("%nSc1" + KEY[5:], "agent.secret")


@given(st.text())
def test_any_text_is_a_list_or_refused(text: str) -> None:
    try:
        keys = parse_list(text, "masters")
    except KeysError:
        return
    assert all(len(key) == 40 for key in keys)


@given(st.text())
def test_any_text_is_a_secret_or_refused_without_being_told(text: str) -> None:
    try:
        parse_secret(text, "master.secret")
    except KeysError as error:
        words = (
            r"master\.secret: expected one secret key, .* found (\d+|something else); `kontrol .*"
        )
        assert re.fullmatch(words, str(error))


def test_a_pair_does_not_show_its_secret() -> None:
    pair = Pair.make()
    assert pair.secret not in repr(pair)
    assert parse_secret(f"{pair.secret}\n", "x") == pair


def test_what_was_made_is_complete_and_for_its_owner_alone(tmp_path: Path) -> None:
    folder = cluster(tmp_path / "keys")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name for path in folder.iterdir()} == set(FILES)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    keys = Keyring.load(folder)
    for kind in KINDS:
        assert keys.accepted(kind) == (keys.own(kind).public,)
        assert keys.kind(keys.own(kind).public) == kind
    assert len({keys.own(kind).secret for kind in KINDS}) == 3


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(KeysError, match=name):
        make(tmp_path, "2026-11-23")
    assert os.listdir(tmp_path) == [name]  # noqa: PTH208 - names are wanted


def test_what_is_missing_is_named_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match=r"nowhere: expected a folder of keys; `kontrol keys make`"):
        Keyring.load(tmp_path / "nowhere")
    keys = Keyring.load(tmp_path)
    with pytest.raises(KeysError, match=r"agent\.secret: .* `kontrol keys secret --kind agent`"):
        keys.own("agent")
    with pytest.raises(KeysError, match=r"masters or .*operators: expected at least one"):
        keys.accepted("master", "operator")


def test_a_key_of_two_kinds_is_refused(tmp_path: Path) -> None:
    folder = cluster(tmp_path / "keys")
    (folder / "operators").write_bytes((folder / "agents").read_bytes())
    with pytest.raises(KeysError, match=r"operators: .* is in `agents` too"):
        Keyring.load(folder)


def test_a_secret_that_others_can_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = cluster(tmp_path / "keys")
    Keyring.load(folder)
    assert not caplog.records
    (folder / "agent.secret").chmod(0o640)
    Keyring.load(folder)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "agent.secret can be read by more than its owner (mode 640)" in record.getMessage()


def test_a_changed_list_is_read_again(tmp_path: Path) -> None:
    folder = cluster(tmp_path / "keys")
    keys = Keyring.load(folder)
    before = keys.refresh()
    assert keys.refresh() is before
    with (folder / "agents").open("a", encoding="utf-8") as file:
        file.write(f"{KEY} by hand\n")
    assert keys.refresh() is not before
    assert keys.kind(KEY) == "agent"


def test_a_list_that_keeps_its_size_and_time_is_read_again(tmp_path: Path) -> None:
    """As `rsync --inplace --times` leaves it: all keys have one length."""
    folder = cluster(tmp_path / "keys")
    keys = Keyring.load(folder)
    path = folder / "agents"
    before = path.stat()
    text = path.read_text("utf-8")
    [old] = parse_list(text, "agents")
    path.write_text(text.replace(old, KEY), "utf-8")
    while (
        path.stat().st_ctime_ns == before.st_ctime_ns
        or path.stat().st_mtime_ns != before.st_mtime_ns
    ):
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    keys.refresh()
    assert keys.kind(old) is None
    assert keys.kind(KEY) == "agent"


def test_a_mounted_secret_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """As the kubelet does it: a link to a link to a folder, of which the middle one is swapped."""
    old, new = cluster(tmp_path / "..1"), cluster(tmp_path / "..2")
    (tmp_path / "..data").symlink_to(old)
    for name in FILES:
        (tmp_path / name).symlink_to(Path("..data") / name)
    keys = Keyring.load(tmp_path)
    (tmp_path / "..data_tmp").symlink_to(new)
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")
    keys.refresh()
    assert keys.own("master") == Keyring.load(new).own("master")


def test_a_bad_change_leaves_the_keys_as_they_were(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = cluster(tmp_path / "keys")
    keys = Keyring.load(folder)
    before = keys.refresh()
    (folder / "masters").write_text("half a ke", encoding="utf-8")
    assert keys.refresh() is before
    assert keys.refresh() is before
    (record,) = caplog.records
    assert "stays in force" in record.getMessage()
    assert "masters, line 1" in record.getMessage()


@pytest.mark.parametrize("kind", KINDS)
def test_a_rotation_is_three_steps(tmp_path: Path, kind: Kind) -> None:
    folder = cluster(tmp_path / "keys")
    old = Keyring.load(folder)
    old_key = old.own(kind).public
    with (folder / f"{kind}s").open("a", encoding="utf-8") as file:
        file.write(f"{KEY} another's")  # without an end of line

    assert rotate(folder, kind, "2026-11-24").number == 1
    first = Keyring.load(folder)
    assert first.own(kind).public == old_key
    listed = first.accepted(kind)
    assert listed[:2] == (old_key, KEY)
    new_key = listed[2]

    assert rotate(folder, kind, "2026-11-25").number == 2
    second = Keyring.load(folder)
    assert second.own(kind).public == new_key
    assert second.accepted(kind) == listed

    assert rotate(folder, kind, "2026-11-26").number == 3
    third = Keyring.load(folder)
    assert third.accepted(kind) == (KEY, new_key)
    assert {path.name for path in folder.iterdir()} == set(FILES)
    assert rotate(folder, kind, "2026-11-27").number == 1


def test_a_step_that_was_cut_short_is_repeated(tmp_path: Path) -> None:
    folder = cluster(tmp_path / "keys")
    listed, own = (folder / "agents").read_bytes(), (folder / "agent.secret").read_bytes()
    rotate(folder, "agent", "2026-11-24")
    (folder / "agents").write_bytes(listed)  # the secret was written, the list was not
    assert rotate(folder, "agent", "2026-11-24").number == 1
    waiting = (folder / "agent.secret.next").read_bytes()
    rotate(folder, "agent", "2026-11-25")
    (folder / "agent.secret").write_bytes(own)  # the list was marked, the secret not replaced
    (folder / "agent.secret.next").write_bytes(waiting)
    assert rotate(folder, "agent", "2026-11-25").number == 2
    assert (folder / "agent.secret").read_bytes() == waiting


@pytest.mark.parametrize("kind", KINDS)
def test_a_secret_for_kubernetes_has_what_that_kind_needs(tmp_path: Path, kind: Kind) -> None:
    folder = cluster(tmp_path / "keys")
    text = manifest(folder, [kind], "kontrol", "games")
    made = yaml.safe_load(text)
    assert (made["kind"], made["metadata"]) == ("Secret", {"name": "kontrol", "namespace": "games"})
    assert set(made["data"]) == set(NEEDS[kind])
    secrets = [name for name in made["data"] if name.endswith(".secret")]
    assert secrets == [f"{kind}.secret"]
    for name, data in made["data"].items():
        assert base64.b64decode(data) == (folder / name).read_bytes()


@pytest.mark.parametrize("name", ["", "Kontrol", "a b", "a\nkind: Pod", "-a", "a" * 254])
def test_a_name_cannot_smuggle_anything_into_the_manifest(tmp_path: Path, name: str) -> None:
    with pytest.raises(KeysError, match="name"):
        manifest(cluster(tmp_path / "keys"), ["agent"], name, None)


def test_what_was_parted_is_enough(tmp_path: Path) -> None:
    whole = cluster(tmp_path / "whole")
    for kind in KINDS:
        keys = Keyring.load(part(tmp_path / kind, whole, *NEEDS[kind]))
        assert zmq.curve_public(keys.own(kind).secret.encode()).decode() == keys.own(kind).public
