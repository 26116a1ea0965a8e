"""One rule for numbers, wherever a person may write one."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automaton import cli as automaton
from kontrol import cli
from kontrol.ensemble.numbers import decimal, whole
from kontrol.settings import examine
from kontrol.settings import variables as v

# What `int` or `float` would accept, and is a slip.
ODD = ("25_0", "+25", "-25", "1e2", "٢٥", "２５", "²", "nan", "inf", "0x19", "25.", ".5", "2.5.0")  # noqa: RUF001
NUMBERS = [
    variable.name
    for variable in v.VARIABLES
    if (isinstance(variable.default, str) and variable.default.isdecimal())
    or variable in (v.DAMPER_MAX, v.CALLBACK_TIMEOUT)
]


@given(st.integers(0, 10**18 - 1))
def test_every_whole_number_is_read(number: int) -> None:
    assert whole(str(number), 0, 10**18) == number
    assert decimal(str(number)) == float(number)


@given(st.text())
def test_nothing_but_digits_and_a_point_is_read(text: str) -> None:
    for read in (lambda text: whole(text, 0, 2**63), decimal):
        try:
            read(text)
        except ValueError:
            continue
        assert set(text) <= set("0123456789.")


@pytest.mark.parametrize("text", [*ODD, "", " 25", "25\n", "9" * 5000])
def test_whatever_else_python_reads_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="digits 0-9"):
        decimal(text)
    with pytest.raises(ValueError, match="digits 0-9"):
        whole(text, 0, 2**63)


def test_there_are_numbers_among_the_variables() -> None:
    assert {"KONTROL_PORT", "KONTROL_TTL", "KONTROL_DAMPER_MAX", "KONTROL_BRAKE"} <= set(NUMBERS)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("text", ODD)
def test_every_variable_keeps_to_it(name: str, text: str) -> None:
    mistakes = examine({"KONTROL_MODE": "debug", name: text}).mistakes
    assert [mistake for mistake in mistakes if mistake.name == name]


@pytest.mark.parametrize(
    "words",
    [
        ("status", "--timeout"),
        ("leave", "--timeout"),
        ("runs", "--limit"),
        ("explain",),
        ("rollback",),
        ("invoke", "--all", "--timeout", "{}", "--", "true"),
        ("invoke", "--all", "--parallel", "{}", "--", "true"),
        ("demo", "--pace"),
    ],
)
@pytest.mark.parametrize("text", ["25_0", "٢٥", "1e2", "nan"])
def test_every_option_keeps_to_it(
    words: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.format(text) for word in words]
    with pytest.raises(SystemExit) as left:
        cli.main(given if text in given else [*given, text])
    assert left.value.code == 2
    assert repr(text) in capsys.readouterr().err


def test_a_tiny_damper_has_a_ceiling() -> None:
    """Whose default is a number by the rule, too."""
    resolved = examine({"KONTROL_MODE": "debug", "KONTROL_DAMPER": "0.0000001"})
    assert not resolved.mistakes
    assert resolved.require(v.DAMPER_MAX) == pytest.approx(6e-7)


@pytest.mark.parametrize("text", ["25_0", "٢٥", "nan"])
def test_automaton_keeps_to_it(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        automaton.main(["ctl", "--timeout", text, "/no/socket", "STATE"])
    assert left.value.code == 2
    assert repr(text) in capsys.readouterr().err


def test_what_a_callback_is_given_is_bounded() -> None:
    """A number of thousands of digits is an error of `int`, too."""
    result = subprocess.run(
        [sys.executable, "-m", "kontrol", "invoke", "--all", "--", "true"],
        env={"TIER": "a/b", "TERM_ID": "9" * 5000, "RUN": "1", "PODS_FILE": "/dev/null"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 2
    assert "expected a number, as a callback is given" in result.stderr
