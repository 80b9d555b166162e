"""How Sphinx builds these pages: `make docs`, which reads nothing from the network."""

import sys
import tomllib
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]

_project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]
project, author = "UniPT-JAX", "the authors of UniPT-JAX"
version = release = _project["version"]
repository = _project["urls"]["Repository"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "pages",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
suppress_warnings = ["config.cache"]

# Docstrings write code as `this`.
default_role = "code"
autodoc_default_options = {"members": True, "special-members": "__call__"}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Returns"]  # Prose here, in which Napoleon would look for a type.
napoleon_use_ivar = True  # A field stands in its class's own list alone.
autosummary_ignore_module_all = True
# The pages of other packages are not fetched, so that nothing can be linked there.
# A type variable is no object of its own.
nitpick_ignore_regex = [("py:.*", r"(?!unipt_jax\b).*"), ("py:class", r".*\.T")]

myst_heading_anchors = 4

html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_copyright = False
html_theme_options = {
    "source_repository": repository,
    "source_branch": "main",
    "source_directory": "docs/",
}
