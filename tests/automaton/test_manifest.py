"""Manifests: what is accepted, and what is said of what is not."""

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automaton import yamlfile
from automaton.load import load
from automaton.manifest import Manifest, ManifestError, Outcome
from automaton.validate import validate

GOOD = """\
initial: A
terminal: C
payload: state.json
states:
- tag: A
  shell: echo starting
  next:
    - B
- tag: B
  shell: |
    sleep 5
    echo $INPUT > foo
  next: [A, 'B*']
  force: yes
  timeout: 2.5
  retry: 3
  env: {LEVEL: 3, SURE: yes, EMPTY: }
  on: {success: A, failure: B, timeout: C}
- tag: C
"""


def parse(text: str | bytes) -> tuple[Manifest, list[str]]:
    raw = text if isinstance(text, bytes) else text.encode()
    manifest, warnings = validate("bot.yml", yamlfile.read("bot.yml", raw))
    return manifest, [warning.render("bot.yml") for warning in warnings]


def complaints(text: str | bytes) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        parse(text)
    return str(caught.value).splitlines()


def test_a_manifest_is_read() -> None:
    manifest, warnings = parse(GOOD)
    assert warnings == []
    assert (manifest.initial, manifest.terminal, manifest.payload) == ("A", "C", "state.json")
    state = manifest.states["B"]
    assert state.argv == ("/bin/sh", "-c", "sleep 5\necho $INPUT > foo\n")
    assert state.reach == {"A", "B"}
    assert (state.force, state.timeout, state.retry) == (True, 2.5, 3)
    assert state.env == {"LEVEL": "3", "SURE": "yes", "EMPTY": ""}
    assert state.on == {Outcome.SUCCESS: "A", Outcome.FAILURE: "B", Outcome.TIMEOUT: "C"}
    assert manifest.states["C"].argv == ()
    assert manifest.limit("A") is None
    assert manifest.limit("C") == 20.0


def test_tags_are_taken_as_written() -> None:
    manifest, _ = parse(
        "initial: 1\nterminal: no\nstates:\n"
        "- {tag: 1, next: [2026-01-01]}\n- {tag: 2026-01-01}\n- {tag: no}\n"
    )
    assert list(manifest.states) == ["1", "2026-01-01", "no"]


def test_an_alias_shares_a_value() -> None:
    manifest, _ = parse(
        "initial: a\nterminal: z\nstates: [{tag: a, next: &n [a, b]}, {tag: b, next: *n}, {tag: z}]"
    )
    assert manifest.states["b"].reach == {"a", "b"}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "initial: A",
            "initail: A",
            [
                (
                    "bot.yml:1:1: error: 'initial' is missing; name the state to start in, "
                    "as in 'initial: start'"
                ),
                (
                    "bot.yml:1:1: warning: unknown key 'initail' in a manifest; "
                    "did you mean 'initial'?"
                ),
            ],
        ),
        (
            "  shell: echo",
            "  shel: echo",
            ["bot.yml:6:3: error: unknown key 'shel' in a state; did you mean 'shell'?"],
        ),
        (
            "    - B",
            "    - BB",
            ["bot.yml:8:7: error: 'next' names no state: 'BB'; did you mean 'B'?"],
        ),
        (
            "initial: A",
            "initial: Q",
            ["bot.yml:1:10: error: 'initial' names no state: 'Q'; known: A, B, C"],
        ),
        (
            "success: A",
            "success: Q",
            ["bot.yml:18:17: error: 'on: success' names no state: 'Q'; known: A, B, C"],
        ),
        (
            "{success: A",
            "{succes: A",
            ["bot.yml:18:8: error: unknown key 'succes' in 'on'; did you mean 'success'?"],
        ),
        (
            "timeout: 2.5",
            "timeout: -1",
            ["bot.yml:15:12: error: 'timeout' is '-1'; expected a number of seconds above 0"],
        ),
        (
            "force: yes",
            "force: maybe",
            ["bot.yml:14:10: error: 'force' is 'maybe'; expected true or false"],
        ),
        (
            "retry: 3",
            "retry: 1.5",
            ["bot.yml:16:10: error: 'retry' is '1.5'; expected a whole number from 0 to 1000000"],
        ),
        (
            "- tag: B",
            "- tag: A",
            [
                "bot.yml:8:7: error: 'next' names no state: 'B'; known: A, C",
                "bot.yml:9:8: error: state 'A' is already on line 5; rename one",
            ],
        ),
        (
            "- tag: C",
            "- tag: a b",
            [
                "bot.yml:2:11: error: 'terminal' names no state: 'C'; known: A, B",
                "bot.yml:18:41: error: 'on: timeout' names no state: 'C'; known: A, B",
                (
                    "bot.yml:19:8: error: 'tag' is 'a b'; "
                    "a tag has 1 to 64 characters, no space and none of *?[]"
                ),
            ],
        ),
        (
            "- tag: C",
            "- tag: C\n- x",
            ["bot.yml:20:3: error: a state is 'x'; expected keys with values"],
        ),
        (
            "{LEVEL: 3",
            "{1LEVEL: 3, INPUT: 1",
            [
                "bot.yml:17:9: error: 'env' name '1LEVEL'; use letters, digits and _",
                "bot.yml:17:20: error: 'env' sets INPUT, which automaton sets itself; rename it",
            ],
        ),
        (
            "terminal: C",
            "terminal: C\nterminal: B",
            ["bot.yml:3:1: error: key 'terminal' is already on line 2; drop one"],
        ),
        (
            "    - B",
            "    B: 1",
            [
                (
                    "bot.yml:8:5: error: 'next' is a map; "
                    "expected a list of tags or glob patterns, as in [a, b]"
                )
            ],
        ),
        (
            "shell: echo starting",
            "shell: [echo]",
            ["bot.yml:6:10: error: 'shell' is a list; expected a script as text"],
        ),
        (
            "states:",
            "states: !!python/object/apply:os.system [touch owned]\nx:",
            [
                (
                    "bot.yml:4:9: error: tag !!python/object/apply:os.system: "
                    "a manifest is plain data; take the tag out"
                )
            ],
        ),
    ],
)
def test_every_problem_is_reported_with_place_and_fix(
    old: str, new: str, expected: list[str]
) -> None:
    assert old in GOOD
    said = complaints(GOOD.replace(old, new, 1))
    assert [line for line in said if ": error: " in line or line in expected] == expected


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "payload:",
            "payloads:",
            ["bot.yml:3:1: warning: unknown key 'payloads' in a manifest; did you mean 'payload'?"],
        ),
        (
            "- tag: C",
            "- {tag: D, next: [A]}\n- tag: C",
            ["bot.yml:19:9: warning: state 'D' is unreachable from 'A'; name it in a 'next'"],
        ),
        (
            "    - B",
            "    - B\n    - D\n- tag: D",
            [
                (
                    "bot.yml:10:8: warning: state 'D' is a dead end: only 'C' can follow; "
                    "give it a 'next'"
                )
            ],
        ),
        ("'B*'", "'X*'", ["bot.yml:13:13: warning: 'next' pattern 'X*' matches no state"]),
        (
            "terminal: C",
            "terminal: A",
            [
                "bot.yml:5:3: warning: 'A' is initial and terminal: nothing leaves it; add a state",
                "bot.yml:9:8: warning: state 'B' is unreachable from 'A'; name it in a 'next'",
                (
                    "bot.yml:19:8: warning: state 'C' is a dead end: only 'A' can follow; "
                    "give it a 'next'"
                ),
                "bot.yml:19:8: warning: state 'C' is unreachable from 'A'; name it in a 'next'",
            ],
        ),
    ],
)
def test_what_is_probably_not_meant_is_a_warning(old: str, new: str, expected: list[str]) -> None:
    assert old in GOOD
    assert parse(GOOD.replace(old, new, 1))[1] == expected


def lol(levels: int) -> str:
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "hostile",
    [
        lol(9),
        lol(9) + "\nstates: [{tag: a, next: *l8}]\n",
        "a: &a [*a]",
        "&a {states: [*a, *a]}",
        "[" * 100_000,
        "{a: " * 50_000,
        "- " * 50_000,
        "!!python/name:os.system",
        "initial: !!python/object/new:os._exit [3]",
        "initial: !foo bar",
        "states: !!set {a}",
        b"\xff\xfe\x00",
        b"a: \x00",
        "a: b: c",
        "",
        "--- a\n--- b",
        "%YAML 9.9\n---\na: 1",
        "x" * 2_000_000,
        "? [a, b]\n: c",
    ],
    ids=range(19),
)
def test_hostile_files_are_refused_quickly(hostile: str | bytes) -> None:
    began = time.monotonic()
    said = complaints(hostile)
    assert time.monotonic() - began < 20.0  # a second or so; without bounds, it would not end
    assert said
    assert all(line.startswith("bot.yml:") for line in said)


def test_loading_runs_no_code(tmp_path: Path) -> None:
    (tmp_path / "bot.yml").write_text(
        f"initial: !!python/object/apply:os.system ['touch {tmp_path}/owned']\n"
    )
    with pytest.raises(ManifestError, match="plain data"):
        load(tmp_path / "bot.yml")
    assert not (tmp_path / "owned").exists()


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="No such file or directory; name a readable"):
        load(tmp_path / "none.yml")
    with pytest.raises(ManifestError, match="Is a directory"):
        load(tmp_path)


@settings(deadline=None)
@given(st.text() | st.binary())
def test_any_text_is_read_or_refused(text: str | bytes) -> None:
    complaints(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))


SCALARS = st.sampled_from(["A", "B", "1", "yes", "", "~", "*", "3.5", "-1", "'x y'"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.dictionaries(
            st.sampled_from(["tag", "shell", "next", "on", "env", "timeout", "success", "A"]),
            inner,
            max_size=4,
        ).map(lambda items: "{" + ", ".join(f"{key}: {item}" for key, item in items.items()) + "}")
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["initial", "terminal", "states", "payload"]), VALUES))
def test_any_structure_is_read_or_refused(top: dict[str, str]) -> None:
    text = "\n".join(f"{key}: {value}" for key, value in top.items())
    try:
        manifest, _ = parse(text)
    except ManifestError:
        return
    assert manifest.initial in manifest.states
