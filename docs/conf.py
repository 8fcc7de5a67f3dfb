"""The documentation site: `make docs` builds it with Sphinx, from these pages and the docstrings.

Nothing is fetched, neither to build the pages nor to read them: formulas become MathML, which
browsers draw themselves, and Furo uses the fonts that the reader has.
"""

from __future__ import annotations

import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import pyext  # noqa: E402

project = "pyext"
version = release = pyext.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
templates_path: list[str] = []
html_theme = "furo"
html_title = f"pyext {release}"
html_show_copyright = False
html_static_path = ["style"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say types, shapes and units
napoleon_custom_sections = [("Source", "notes_style"), ("Example", "notes_style")]
napoleon_use_ivar = True
python_maximum_signature_line_length = 88

# Other packages' pages would have to be fetched to link them.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|numpy|collections|typing|onnx\w*|[a-z]+_einsum)(\..*)?")
]


def _inline_math(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(latex2mathml.tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def _block_math(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math"))
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})</span>')
    self.body.append(latex2mathml.tex2mathml(node.astext(), as_block=True))
    self.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Lets browsers draw the formulas, without a script."""
    app.add_html_math_renderer("mathml", (_inline_math, None), (_block_math, None))
