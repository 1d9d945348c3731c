"""Figures that a notebook shows by themselves. Imports matplotlib, so it is imported only where something is drawn."""

import io
from typing import Any

try:
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError("drawing needs matplotlib: pip install stochgraph[plot]") from error

_MOST_DOTS = 2**15  # a side of more than twice as many is refused by the PNG backend


class Picture(Figure):
    """A figure made without pyplot: nothing is shown, registered or left behind."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        """The figure as a PNG file."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=min(110, _MOST_DOTS / max(self.get_size_inches())))
        return buffer.getvalue()

    def svg(self) -> str:
        """The figure as the text of an SVG file, the same every time, with its texts as shapes."""
        buffer = io.StringIO()
        with rc_context({"svg.hashsalt": "stochgraph", "svg.fonttype": "path"}):
            self.savefig(buffer, format="svg", metadata={"Date": None})
        return buffer.getvalue()
