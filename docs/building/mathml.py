"""Formulas as MathML, which browsers show by themselves: nothing is fetched from elsewhere. A Sphinx extension."""

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert


def setup(app: Any) -> dict[str, bool]:
    """Register the renderer."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(translator: Any, node: Any) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block(translator: Any, node: Any) -> None:
    formula = node.astext().replace("{aligned}", "{align*}")  # the one of the two that the converter knows
    translator.body.append(f'<div class="math">{convert(formula, display="block")}</div>')
    raise nodes.SkipNode
