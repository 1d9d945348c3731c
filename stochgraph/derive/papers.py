"""References of estimators, as BibTeX has them. Each stands in the module of the estimator that it is the source of."""

from typing import NamedTuple

ICML = "International Conference on Machine Learning"
ICLR = "International Conference on Learning Representations"
NEURIPS = "Advances in Neural Information Processing Systems"


class Paper(NamedTuple):
    """A paper. Words of its title in braces keep their capitals; `in_journal` says that its venue is no conference.

    Example:
        >>> import stochgraph as sg
        >>> sg.LSF().papers[0].authors
        'Yunhao Tang'
    """

    key: str
    authors: str
    title: str
    venue: str
    year: int
    in_journal: bool = False

    @property
    def bibtex(self) -> str:
        """The entry.

        Example:
            >>> from stochgraph.derive.papers import ICML, Paper
            >>> print(Paper("tang2022", "Yunhao Tang", "Biased gradient estimate", ICML, 2022).bibtex)
            @inproceedings{tang2022,
              author = {Yunhao Tang},
              title = {Biased gradient estimate},
              booktitle = {International Conference on Machine Learning},
              year = {2022},
            }
        """
        kind, where = ("article", "journal") if self.in_journal else ("inproceedings", "booktitle")
        fields = {"author": self.authors, "title": self.title, where: self.venue, "year": self.year}
        lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
        return "\n".join([f"@{kind}{{{self.key},", *lines, "}"])
