"""How the documentation is built: ``make docs``. Nothing on a page is loaded from a network."""

import sys
from importlib.metadata import version as installed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for `reference`, beside this file

project = "vcca_jax"
author = "the vcca_jax authors"
project_copyright = "the vcca_jax authors, Apache-2.0"
release = version = installed("vcca_jax")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "reference",
]
exclude_patterns = ["README.md", "_build"]
suppress_warnings = ["config.cache", "toc.empty_glob"]

# Markdown.
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks come executed
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # or it would be loaded from a network

# Docstrings: Google style, single backticks for code.
default_role = "code"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autosummary_generate = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80

# Types of other libraries, and names of types that are spelled out where they are used, have no
# page here to link to.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!vcca_jax\.).*"),
    (r"py:.*", r"vcca_jax\.ledger\.store\.Store"),  # the file behind a ledger, not for users
    (r"py:.*", r"vcca_jax\.earnings\.State"),  # a type variable
]

html_theme = "furo"
html_title = "vcca_jax"
html_static_path = ["_static"]
html_css_files = ["vcca.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "default"
