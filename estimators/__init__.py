"""How a sample node's distribution is differentiated: one estimator family a file, behind one interface."""

from ..derive.controls import control_variate as control_variate
from ..derive.estimator import Control as Control
from ..derive.estimator import Crossing as Crossing
from ..derive.estimator import GradientEstimator as GradientEstimator
from ..derive.estimator import Inside as Inside
from ..derive.estimator import Site as Site
from ..derive.estimator import Where as Where
from ..surrogate.terms import Term as Term
from .enumeration import Enumerate as Enumerate
from .expansions import LVC as LVC
from .expansions import LoadedDiCE as LoadedDiCE
from .expansions import Taylor as Taylor
from .first_order import FirstOrder as FirstOrder
from .leave_one_out import LOO as LOO
from .linearized import LSF as LSF
from .measure_valued import MVD as MVD
from .pathwise import PW as PW
from .population import Jackknife as Jackknife
from .population import Plugin as Plugin
from .published import EMAML as EMAML
from .published import MAML as MAML
from .published import SGMRLPublished as SGMRLPublished
from .replaced import AtParents as AtParents
from .replaced import Replaced as Replaced
from .score_function import SF as SF
from .words import Estimator as Estimator
