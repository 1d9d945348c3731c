"""Sphinx's settings. `build.py` puts the pages together and runs it."""

project = "stochgraph"
root_doc = "index"
extensions = [
    "myst_nb",  # the pages are the Markdown that code hosts show; notebooks are pages with the results that they hold
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",  # every symbol links to its source
    "mathml",
]
html_theme = "furo"
html_title = "stochgraph"
html_math_renderer = "mathml"
html_show_sourcelink = False
html_copy_source = False

nb_execution_mode = "off"  # tests/test_notebooks.py runs them
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_use_ivar = True
add_module_names = False
