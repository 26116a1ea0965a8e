"""The settings page's body, from the table of variables. No Sphinx in here: a test reads it too."""

from collections.abc import Iterable, Iterator
from itertools import groupby

from kontrol.settings import Variable

_USED_BY = {"agent": "agents", "master": "masters", "boot": "`kontrol boot`"}


def render(variables: Iterable[Variable[object]]) -> str:
    """Return reStructuredText: a section for each group, an `envvar` for each variable."""
    lines: list[str] = []
    for group, members in groupby(variables, key=lambda variable: variable.group):
        lines += [group, "-" * len(group), ""]
        for variable in members:
            lines += [f".. envvar:: {variable.name}", "", f"   {_text(variable)}", ""]
    return "\n".join(lines)


def render_sample(variables: Iterable[Variable[object]]) -> str:
    """Return reStructuredText: the sample environment file as a block of code."""
    lines = [f"   {line}".rstrip() for line in sample(variables).splitlines()]
    return "\n".join([".. code-block:: sh", "", *lines, ""])


def sample(variables: Iterable[Variable[object]]) -> str:
    """Return an environment file with the example of every variable that may be set.

    Each is in single quotes, which shells and systemd's EnvironmentFile= read alike.
    """
    lines: list[str] = []
    for group, members in groupby(variables, key=lambda variable: variable.group):
        lines += ["", f"# {group}"]
        lines += [f"{one.name}='{one.example}'" for one in members if one.secrecy != "value"]
    return "\n".join(lines[1:])


def _text(variable: Variable[object]) -> str:
    """Return the text on a variable. The table marks code with one backtick, as in Markdown."""
    return " ".join(_sentences(variable)).replace("`", "``")


def _sentences(variable: Variable[object]) -> Iterator[str]:
    yield variable.doc
    if variable.secrecy == "value":
        return
    shown = f"`{variable.default}`" if isinstance(variable.default, str) else ""
    yield f"*Default:* {variable.fallback or (shown if variable.default else 'none')}."
    if variable.used_by:
        yield f"*Used by:* {_USED_BY[variable.used_by]}."
    yield f"*Example:* `{variable.example}`."
