"""What a callback is given and how it is judged: pure functions, under generated input."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontrol.master.callback import (
    STATE_DEPTH,
    STATE_LIMIT,
    STRING_LIMIT,
    RunRequest,
    StateError,
    argument_room,
    build_document,
    build_environment,
    judge,
    parse_state,
    size_of,
    write_files,
)
from kontrol.master.fingerprint import Fingerprint
from kontrol.process.clock import boottime
from kontrol.process.command import Outcome, Reason

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip
DOCUMENTS = JSON.map(lambda value: json.dumps(value).encode())
REQUESTS = st.builds(
    RunRequest,
    run=st.integers(1, 2**63),
    term=st.integers(1, 2**63),
    attempt=st.integers(1, 100),
    digest=st.just("d4:1d:8c:d9:8f:00:b2:04:e9:80:09:98:ec:f8:42:7e"),
    pods=st.lists(JSON, max_size=4).map(lambda value: json.dumps(value).encode()),
    changes=st.dictionaries(st.text(), JSON, max_size=4).map(lambda v: json.dumps(v).encode()),
    state=st.none() | DOCUMENTS,
    spec=st.dictionaries(st.text(), JSON, max_size=4).map(lambda v: json.dumps(v).encode()),
)


def request(pods: bytes = b"[]", changes: bytes = b"{}", state: bytes | None = None) -> RunRequest:
    return RunRequest(7, 41, 1, "aa:bb", pods, changes, state)


@given(REQUESTS)
def test_stdin_holds_one_document_with_everything(request: RunRequest) -> None:
    document = json.loads(build_document(request))
    assert document["hash"] == request.digest
    assert (document["run"], document["term_id"]) == (request.run, request.term)
    assert document["pods"] == json.loads(request.pods)
    assert document["changes"] == json.loads(request.changes)
    assert document["spec"] == json.loads(request.spec or b"")
    assert ("state" in document) == (request.state is not None)
    if request.state is not None:
        assert document["state"] == json.loads(request.state)


def test_the_environment_of_a_small_ensemble() -> None:
    files = {"PODS_FILE": "/tmp/x/pods.json"}
    assert build_environment(request(b"[1]", b"{}", b"null"), files, room=10**6) == {
        "HASH": "aa:bb",
        "MD5": "aa:bb",
        "TERM_ID": "41",
        "RUN": "7",
        "PODS": "[1]",
        "SPEC": "{}",
        "CHANGES": "{}",
        "STATE": "null",
        **files,
    }
    assert "STATE" not in build_environment(request(), files, room=10**6)


@given(
    pods=st.integers(0, 300_000),
    changes=st.integers(0, 300_000),
    state=st.none() | st.integers(0, 300_000),
    room=st.integers(0, 600_000),
)
def test_what_is_in_the_environment_is_whole_and_fits(
    pods: int, changes: int, state: int | None, room: int
) -> None:
    values = {"PODS": b"p" * pods, "CHANGES": b"c" * changes}
    if state is not None:
        values["STATE"] = b"s" * state
    asked = request(values["PODS"], values["CHANGES"], values.get("STATE"))
    environment = build_environment(asked, {}, room=room)
    given = {name: value for name, value in environment.items() if name in values}
    for name, value in given.items():
        assert value.encode() == values[name]
        assert len(name) + 1 + len(value) + 1 <= STRING_LIMIT
    fixed = {"HASH", "MD5", "TERM_ID", "RUN"}
    assert fixed <= environment.keys()
    assert size_of((), environment) <= room or not given
    # Nothing is left out without need: the smallest of those left out would not have fitted.
    missing = sorted((len(values[n]), n) for n in values.keys() - given.keys())
    if missing:
        size, name = missing[0]
        alone = environment | {name: values[name].decode()}
        assert len(name) + size + 2 > STRING_LIMIT or size_of((), alone) > room


def test_the_kernel_takes_a_string_at_the_limit_and_no_longer_one() -> None:
    value = "x" * (STRING_LIMIT - len("PODS=") - 1)
    command = ["/bin/sh", "-c", "echo ${#PODS}"]
    done = subprocess.run(command, env={"PODS": value}, capture_output=True, check=True)
    assert int(done.stdout) == len(value)
    with pytest.raises(OSError, match="Argument list too long"):
        subprocess.run(command, env={"PODS": value + "x"}, check=True)
    assert "PODS" in build_environment(request(value.encode()), {}, room=10**6)
    assert "PODS" not in build_environment(request(value.encode() + b"x"), {}, room=10**6)


def test_the_kernel_takes_as_much_as_the_room_that_we_presume() -> None:
    room = argument_room()
    words = ["/bin/true"]
    while size_of([*words, "x" * 100_000], {}) < room - 8192:
        words.append("x" * 100_000)
    assert len(words) > 2
    subprocess.run(words, env={}, check=True)


def test_files_hold_the_same_and_are_private(tmp_path: Path) -> None:
    variables = write_files(request(b"[1]", b'{"joined":[]}', b"2"), tmp_path)
    assert {name: Path(path).read_bytes() for name, path in variables.items()} == {
        "PODS_FILE": b"[1]\n",
        "CHANGES_FILE": b'{"joined":[]}\n',
        "STATE_FILE": b"2\n",
        "SPEC_FILE": b"{}\n",
    }
    assert "STATE_FILE" not in write_files(request(), tmp_path)
    (tmp_path / "spec.json").unlink()
    damaged = replace(request(), spec=None)
    assert "SPEC_FILE" not in write_files(damaged, tmp_path)
    assert "SPEC" not in build_environment(damaged, {}, room=10**6)
    assert "spec" not in json.loads(build_document(damaged))


@given(DOCUMENTS, st.sampled_from([b"", b"\n", b" \r\n\t"]))
def test_a_json_document_is_the_state_byte_for_byte(document: bytes, around: bytes) -> None:
    assert parse_state(around + document + around) == document


@given(st.text(alphabet=" \t\r\n", max_size=20))
def test_nothing_keeps_the_state(blank: str) -> None:
    assert parse_state(blank.encode()) is None


@given(st.binary(max_size=200))
def test_any_other_bytes_are_refused_by_name_and_never_otherwise(output: bytes) -> None:
    try:
        state = parse_state(output)
    except StateError as error:
        assert str(error).startswith("printed ")
        assert "\n" not in str(error)
    else:
        assert state is None or json.loads(state) is not Ellipsis


@pytest.mark.parametrize(
    ("output", "why"),
    [
        (b'{"a": tru}', "printed invalid JSON: line 1 column 7: Expecting value"),
        (b"\n\n[1,]", "printed invalid JSON: line 3 column "),
        (b'starting\n{"a": 1}', "printed invalid JSON: line 1 column 1"),
        (b"{} {}", "printed invalid JSON: line 1 column 4: Extra data"),
        (b"NaN", "printed invalid JSON: NaN is not a JSON number"),
        (b"[-Infinity]", "printed invalid JSON: -Infinity is not a JSON number"),
        (b"1e999", "printed invalid JSON: 1e999 is beyond the range"),
        (b'"\xff"', "printed invalid JSON: not UTF-8 at byte 1"),
        (b"\xef\xbb\xbf{}", "printed invalid JSON: line 1 column 1: Unexpected UTF-8 BOM"),
        (b"9" * 5000, "printed invalid JSON: a number has too many digits"),
        (b"[" * 200_000, "printed "),
        (b"[" * 200_000 + b"]" * 200_000, "printed invalid JSON: nested deeper than 100 levels"),
        (b'"' + b"x" * STATE_LIMIT + b'"', "printed 524290 bytes, over 524288"),
        (b"\x00", "printed invalid JSON"),
        (b'{"a": 1, "a": 2}', "printed invalid JSON: the member 'a' is there twice: keep one"),
        (b'[{"b": {"c": 1, "d": 2, "c": 1}}]', "printed invalid JSON: the member 'c' is there"),
        (b'{"\\u0061": 1, "a": 2}', "printed invalid JSON: the member 'a' is there twice"),
        (b'"\\ud83d"', "printed invalid JSON: a string holds a lone surrogate"),
    ],
)
def test_says_what_is_wrong_with_output(output: bytes, why: str) -> None:
    with pytest.raises(StateError) as raised:
        parse_state(output)
    assert str(raised.value).startswith(why)


def test_depth_is_counted_outside_of_strings() -> None:
    deepest = b"[" * STATE_DEPTH + b"]" * STATE_DEPTH
    assert parse_state(deepest) == deepest
    with pytest.raises(StateError, match="nested deeper"):
        parse_state(b"[" + deepest + b"]")
    text = json.dumps("[{" * 500 + '"\\').encode()
    assert parse_state(text) == text


def outcome(reason: Reason, status: int | None = None, stdout: bytes = b"") -> Outcome:
    return Outcome(reason, status, None, stdout, b"tail \xff", 1.5, "the detail")


def test_only_status_zero_with_json_or_nothing_is_good() -> None:
    good = judge(outcome("exited", 0, b"[1]\n"))
    assert (good.ok, good.state, good.seconds, good.stderr_tail) == (True, b"[1]", 1.5, "tail �")
    kept = judge(outcome("exited", 0, b"\n"))
    assert (kept.ok, kept.state) == (True, None)
    bad = judge(outcome("exited", 0, b"nope"))
    assert (bad.ok, bad.state, bad.status) == (False, None, 0)
    assert bad.why.startswith("printed invalid JSON: line 1 column 1")
    failed = judge(outcome("exited", 3, b"[1]"))
    assert (failed.ok, failed.state, failed.why, failed.status) == (False, None, "the detail", 3)


@given(
    st.sampled_from(
        [
            "signalled",
            "timeout",
            "stopped",
            "fenced",
            "guard died",
            "not started",
            "too much output",
        ]
    ),
    st.none() | st.just(0),
)
def test_whatever_was_ended_from_outside_is_never_good(reason: Reason, status: int | None) -> None:
    judged = judge(outcome(reason, status, b"[1]"))
    assert not judged.ok
    assert judged.state is None
    assert judged.why.startswith("the detail")
    assert judged.fenced == (reason == "fenced")


def test_the_fingerprint_follows_the_files_that_words_name(tmp_path: Path) -> None:
    hook, data = tmp_path / "hook.sh", tmp_path / "data.json"
    hook.write_text("one", encoding="utf-8")
    subject = fingerprint_of(f"sh '{hook}' {data} --flag {tmp_path} /dev/zero")
    seen = [subject.read()]
    assert subject.read() == seen[0]
    data.write_text("{}", encoding="utf-8")
    seen.append(subject.read())
    hook.write_text("two!", encoding="utf-8")
    seen.append(subject.read())
    replacement = tmp_path / "new"
    replacement.write_text("tri!", encoding="utf-8")
    shutil.copystat(hook, replacement)
    replacement.replace(hook)
    seen.append(subject.read())
    assert len(set(seen)) == 4
    data.unlink()
    hook.write_text("one", encoding="utf-8")
    assert subject.read() == seen[0]


def test_the_fingerprint_follows_the_command_line(tmp_path: Path) -> None:
    hook = tmp_path / "hook"
    hook.write_text("x", encoding="utf-8")
    assert fingerprint_of(f"{hook} a").read() != fingerprint_of(f"{hook}  a").read()
    assert fingerprint_of("echo 'unclosed").read() == fingerprint_of("echo 'unclosed").read()
    assert len(fingerprint_of("echo").read()) == 64


def fingerprint_of(command: str, *folders: Path) -> Fingerprint:
    return Fingerprint(command, ":".join(map(str, folders)), shell=False, clock=boottime)


def program(folder: Path, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "on-change").write_text(text, encoding="utf-8")
    (folder / "on-change").chmod(0o755)


def test_the_fingerprint_follows_the_program_that_the_path_leads_to(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    subject = fingerprint_of("on-change --all", first, second)
    assert subject.paths() == [first / "on-change", second / "on-change", Path("--all")]
    seen = [subject.read()]
    program(second, "one")
    seen.append(subject.read())
    program(second, "two")
    seen.append(subject.read())
    program(first, "three")
    seen.append(subject.read())
    assert len(set(seen)) == 4
    assert subject.paths() == [first / "on-change", Path("--all")]
    (first / "on-change").chmod(0o644)  # not executable: it is passed over
    assert subject.read() == seen[2]


def test_a_folder_of_that_name_is_no_program(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    subject = fingerprint_of("on-change", first, second)
    program(second, "one")
    before = subject.read()
    (first / "on-change").mkdir(parents=True)
    assert subject.read() == before


def test_an_empty_part_of_the_path_is_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    subject = Fingerprint("on-change", "", shell=False, clock=boottime)
    assert subject.paths() == [Path("on-change")]
    before = subject.read()
    program(tmp_path, "one")
    assert subject.read() != before


def test_a_shell_ends_words_at_its_operators(tmp_path: Path) -> None:
    for name in ("library", "hook"):
        (tmp_path / name).write_text("", encoding="utf-8")
    command = f". {tmp_path}/library;{tmp_path}/hook|cat"
    found = {
        one: Fingerprint(command, "", shell=one, clock=boottime).paths() for one in (True, False)
    }
    assert {tmp_path / "library", tmp_path / "hook"} < set(found[True])
    assert found[False][1:] == [Path(command.partition(" ")[2])]


def test_output_that_is_too_long_is_called_the_state() -> None:
    assert "which is the state" in judge(outcome("too much output")).why
    assert "which is the state" not in judge(outcome("timeout")).why


def test_a_state_may_be_as_large_as_the_limit() -> None:
    state = b'"' + b"x" * (STATE_LIMIT - 2) + b'"'
    assert parse_state(state) == state
    with pytest.raises(StateError, match="over"):
        parse_state(b"x" + state)


def test_the_environment_may_fill_the_room() -> None:
    room = size_of((), build_environment(request(), {}, room=1 << 20))
    assert "PODS" in build_environment(request(), {}, room=room)
    assert "PODS" not in build_environment(request(), {}, room=room - 1)


def test_the_room_for_arguments_elsewhere_is_what_the_system_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sysconf", lambda _: 12345)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert argument_room() == 12345
    monkeypatch.setattr(sys, "platform", "linux")
    assert argument_room() >= STRING_LIMIT


def test_a_further_word_is_not_looked_for_in_the_path(tmp_path: Path) -> None:
    subject = fingerprint_of("echo on-change", tmp_path)
    before = subject.read()
    program(tmp_path, "one")
    assert subject.read() == before


def test_two_writes_within_one_tick_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook, now = tmp_path / "hook", 0.0
    hook.write_text("one", encoding="utf-8")
    found = hook.stat()
    monkeypatch.setattr(os, "fstat", lambda _: found)  # the same size and times always
    subject = Fingerprint(str(hook), "", shell=False, clock=lambda: now)
    before = subject.read()
    hook.write_text("two", encoding="utf-8")
    now = 0.2  # what is read now was the last of that tick
    after = subject.read()
    assert after != before
    hook.write_text("tri", encoding="utf-8")
    assert subject.read() == after, "read again, although its times are the same"


def test_a_file_that_was_replaced_is_looked_at_for_a_tick_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook, now = tmp_path / "hook", 0.0
    hook.write_text("one", encoding="utf-8")
    found = hook.stat()
    monkeypatch.setattr(os, "fstat", lambda _: found)
    subject = Fingerprint(str(hook), "", shell=False, clock=lambda: now)
    subject.read()
    now = 100.0
    other = tmp_path / "other"
    other.write_text("another", encoding="utf-8")
    found = other.stat()
    other.replace(hook)
    replaced = subject.read()
    hook.write_text("changed", encoding="utf-8")  # of the same size, and at the same tick
    assert subject.read() != replaced


def test_a_file_that_the_callback_writes_makes_no_new_callback_for_ever(tmp_path: Path) -> None:
    hook, book = tmp_path / "hook", tmp_path / "book"
    for file in (hook, book):
        file.write_text("", encoding="utf-8")
    subject = fingerprint_of(f"{hook} {book}")

    def run(*, writes: Path | None = None) -> list[str]:
        subject.run_begins()
        if writes is not None:
            writes.write_text(writes.read_text(encoding="utf-8") + "line\n", encoding="utf-8")
        return subject.run_ended()

    seen = [subject.read()]
    assert run(writes=book) == []
    seen.append(subject.read())
    assert run(writes=book) == [str(book)]
    assert book not in subject.paths()
    assert run(writes=book) == []  # told once
    assert subject.read() == seen[1] != seen[0]
    hook.write_text("updated", encoding="utf-8")
    assert subject.read() != seen[1]
    before = subject.read()
    assert run() == []  # it is left alone: so it counts again
    assert book in subject.paths()
    assert subject.read() != before


def test_an_update_during_one_run_is_a_new_callback(tmp_path: Path) -> None:
    hook = tmp_path / "hook"
    hook.write_text("one", encoding="utf-8")
    subject = fingerprint_of(str(hook))
    before = subject.read()
    for text in ("two", "two", "three"):
        subject.run_begins()
        hook.write_text(text, encoding="utf-8")
        assert subject.run_ended() == []
        assert subject.read() != before
