"""stochgraph: the compiler of gradient estimators.

Declare a stochastic computation graph (`graph`, `sample`, `mean`, `sum`, `ascend`, `argmax`), choose an estimator per
sample node (`SF`, `LSF`, `PW`, ...), and the library derives the surrogate whose autograd gradient is the estimate,
explains how every gradient path is counted, and proves it by enumeration where that is possible.
"""

from . import solvers as solvers
from ._argmax import argmax as argmax
from ._argmax import unknown as unknown
from ._chunks import accumulate as accumulate
from ._chunks import chunk_size as chunk_size
from ._chunks import chunks as chunks
from ._compile import Compiled as Compiled
from ._data import data as data
from ._declare import apply as apply
from ._declare import ascend as ascend
from ._declare import descend as descend
from ._declare import log_prob as log_prob
from ._declare import logmeanexp as logmeanexp
from ._declare import mean as mean
from ._declare import reduce as reduce
from ._declare import sample as sample
from ._declare import stop as stop
from ._declare import sum as sum
from ._errors import CompileError as CompileError
from ._errors import DeclarationError as DeclarationError
from ._errors import FunctionError as FunctionError
from ._errors import InputError as InputError
from ._errors import SamplingError as SamplingError
from ._errors import SolverError as SolverError
from ._errors import StochgraphError as StochgraphError
from ._errors import VerificationError as VerificationError
from ._explain import Explanation as Explanation
from ._graph import Graph as Graph
from ._graph import graph as graph
from ._ledger import Row as Row
from ._profile import Figures as Figures
from ._profile import Profile as Profile
from ._profile import profile as profile
from ._sampler import Sampler as Sampler
from ._trace import Trace as Trace
from ._vectorize import vectorize as vectorize
from ._verify import Verification as Verification
from ._verify import verify as verify
from .estimators import EMAML as EMAML
from .estimators import LOO as LOO
from .estimators import LSF as LSF
from .estimators import LVC as LVC
from .estimators import MAML as MAML
from .estimators import PW as PW
from .estimators import SF as SF
from .estimators import Estimator as Estimator
from .estimators import FirstOrder as FirstOrder
from .estimators import LoadedDiCE as LoadedDiCE
from .estimators import SGMRLPublished as SGMRLPublished
from .estimators import Taylor as Taylor

__all__ = [
    "EMAML",
    "LOO",
    "LSF",
    "LVC",
    "MAML",
    "PW",
    "SF",
    "CompileError",
    "Compiled",
    "DeclarationError",
    "Estimator",
    "Explanation",
    "Figures",
    "FirstOrder",
    "FunctionError",
    "Graph",
    "InputError",
    "LoadedDiCE",
    "Profile",
    "Row",
    "SGMRLPublished",
    "Sampler",
    "SamplingError",
    "SolverError",
    "StochgraphError",
    "Taylor",
    "Trace",
    "Verification",
    "VerificationError",
    "accumulate",
    "apply",
    "argmax",
    "ascend",
    "chunk_size",
    "chunks",
    "data",
    "descend",
    "graph",
    "log_prob",
    "logmeanexp",
    "mean",
    "profile",
    "reduce",
    "sample",
    "solvers",
    "stop",
    "sum",
    "unknown",
    "vectorize",
    "verify",
]
