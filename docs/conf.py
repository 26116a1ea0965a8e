"""Sphinx: pages in reStructuredText, decision records in Markdown, settings from the table."""

import importlib
import sys
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

import settings_page  # noqa: E402 - found through the line above

from kontrol import __version__  # noqa: E402
from kontrol.settings import variables  # noqa: E402

project = "Kontrol"
author = "The Kontrol project"
copyright = "The Kontrol project, Apache License 2.0"
version = release = __version__

extensions = ["myst_parser"]
source_suffix = {".rst": "restructuredtext", ".md": "markdown"}
exclude_patterns = ["_build"]
nitpicky = True  # a reference that leads nowhere is a warning, and warnings fail the build
default_role = "literal"

html_theme = "furo"
html_title = f"Kontrol {version}"
html_static_path = ["_static"]
html_css_files = ["kontrol.css"]
html_copy_source = False
html_show_sphinx = False


class Settings(SphinxDirective):
    """`.. kontrol-settings::`: every variable, by group; with `:sample:`, the environment file."""

    option_spec: ClassVar = {"sample": directives.flag}

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        for module in (settings_page, variables):  # an edit of either makes the page out of date
            self.env.note_dependency(module.__file__)
        render = settings_page.render_sample if "sample" in self.options else settings_page.render
        return self.parse_text_to_nodes(render(variables.VARIABLES), allow_section_headings=True)


class Made(SphinxDirective):
    """`.. kontrol-made:: NAME`: what the module `NAME_page` renders, made from the code."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        page = importlib.import_module(f"{self.arguments[0]}_page")
        self.env.note_dependency(page.__file__ or "")
        return self.parse_text_to_nodes(page.render(), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register what is ours."""
    app.add_directive("kontrol-settings", Settings)
    app.add_directive("kontrol-made", Made)
    return {"parallel_read_safe": True}
