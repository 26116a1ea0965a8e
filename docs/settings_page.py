"""The settings page's body, from the table of variables. No Sphinx in here: a test reads it too."""

from collections.abc import Iterable
from itertools import groupby

from kontrol.settings.variable import Variable


def render(variables: Iterable[Variable[object]]) -> str:
    """Return reStructuredText: a section for each group, an `envvar` for each variable."""
    lines: list[str] = []
    for group, members in groupby(variables, key=lambda variable: variable.group):
        lines += [group, "-" * len(group), ""]
        for variable in members:
            lines += [f".. envvar:: {variable.name}", "", f"   {_text(variable)}", ""]
    return "\n".join(lines)


def _text(variable: Variable[object]) -> str:
    """Return what is said of a variable, and its default unless it is refused."""
    default = variable.otherwise or (f"`{variable.default}`" if variable.default else "none")
    text = variable.doc if variable.secrecy == "value" else f"{variable.doc} *Default:* {default}."
    # The table marks code as Markdown does, with one backtick; here it takes two.
    return text.replace("`", "``")
