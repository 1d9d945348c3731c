"""How a sample node's distribution is differentiated: one estimator family a file."""

from ._base import Estimator as Estimator
from ._base import Pathwise as Pathwise
from ._expansions import LVC as LVC
from ._expansions import LoadedDiCE as LoadedDiCE
from ._expansions import Taylor as Taylor
from ._leave_one_out import LOO as LOO
from ._linearized import LSF as LSF
from ._meta import EMAML as EMAML
from ._meta import MAML as MAML
from ._meta import FirstOrder as FirstOrder
from ._meta import SGMRLPublished as SGMRLPublished
from ._pathwise import PW as PW
from ._score_function import SF as SF
