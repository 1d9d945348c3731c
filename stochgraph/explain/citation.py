"""The papers behind a compiled graph."""

from collections.abc import Mapping

from ..derive.estimator import GradientEstimator


def citation(estimators: Mapping[str, GradientEstimator]) -> str:
    """The papers of some estimators as BibTeX, each once, with the samples that it is for."""
    found: dict[str, list[str]] = {}
    for name, estimator in estimators.items():
        for paper in dict.fromkeys(estimator.papers):
            found.setdefault(paper.bibtex, []).append(name)
    return "\n\n".join(f"% {', '.join(names)}\n{entry}" for entry, names in found.items())
