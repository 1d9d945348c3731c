"""stochgraph: the compiler of gradient estimators.

Declare a stochastic computation graph (`graph`, `sample`, `mean`, `sum`, `ascend`, `argmax`), choose an estimator per
sample node (`SF`, `LSF`, `PW`, ...), and the library derives the surrogate whose autograd gradient is the estimate,
explains how every gradient path is counted, and proves it by enumeration where that is possible.
"""

from . import solvers as solvers
from .distributions.samplers import Sampler as Sampler
from .errors.exceptions import CompileError as CompileError
from .errors.exceptions import DeclarationError as DeclarationError
from .errors.exceptions import FunctionError as FunctionError
from .errors.exceptions import InputError as InputError
from .errors.exceptions import LoweringError as LoweringError
from .errors.exceptions import SamplingError as SamplingError
from .errors.exceptions import SolverError as SolverError
from .errors.exceptions import StochgraphError as StochgraphError
from .errors.exceptions import VerificationError as VerificationError
from .estimators import EMAML as EMAML
from .estimators import LOO as LOO
from .estimators import LSF as LSF
from .estimators import LVC as LVC
from .estimators import MAML as MAML
from .estimators import MVD as MVD
from .estimators import PW as PW
from .estimators import REBAR as REBAR
from .estimators import RELAX as RELAX
from .estimators import SF as SF
from .estimators import DisARM as DisARM
from .estimators import Enumerate as Enumerate
from .estimators import Estimator as Estimator
from .estimators import FirstOrder as FirstOrder
from .estimators import Jackknife as Jackknife
from .estimators import LoadedDiCE as LoadedDiCE
from .estimators import Multilevel as Multilevel
from .estimators import Plugin as Plugin
from .estimators import Relaxed as Relaxed
from .estimators import SGMRLPublished as SGMRLPublished
from .estimators import Taylor as Taylor
from .explain.explanation import Explanation as Explanation
from .explain.ledger import Row as Row
from .explain.magnitudes import Group as Group
from .graphs import Graph as Graph
from .graphs import graph as graph
from .ir.traces import Trace as Trace
from .language.argmax import argmax as argmax
from .language.argmax import unknown as unknown
from .language.data import data as data
from .language.optimizers import adam as adam
from .language.optimizers import momentum as momentum
from .language.populations import expect as expect
from .language.words import apply as apply
from .language.words import ascend as ascend
from .language.words import descend as descend
from .language.words import log_prob as log_prob
from .language.words import logmeanexp as logmeanexp
from .language.words import mean as mean
from .language.words import reduce as reduce
from .language.words import sample as sample
from .language.words import stop as stop
from .language.words import sum as sum
from .prove.losses import verify_loss as verify_loss
from .prove.profiling import Figures as Figures
from .prove.profiling import Profile as Profile
from .prove.profiling import profile as profile
from .prove.tuning import Trial as Trial
from .prove.tuning import Tuning as Tuning
from .prove.tuning import tune as tune
from .prove.verification import Verification as Verification
from .prove.verification import verify as verify
from .run.chunks import accumulate as accumulate
from .run.chunks import chunk_size as chunk_size
from .run.chunks import chunks as chunks
from .run.compiled import Compiled as Compiled
from .run.lowered import Lowered as Lowered
from .tensors.vectorize import vectorize as vectorize

__all__ = [
    "EMAML",
    "LOO",
    "LSF",
    "LVC",
    "MAML",
    "MVD",
    "PW",
    "REBAR",
    "RELAX",
    "SF",
    "CompileError",
    "Compiled",
    "DeclarationError",
    "DisARM",
    "Enumerate",
    "Estimator",
    "Explanation",
    "Figures",
    "FirstOrder",
    "FunctionError",
    "Graph",
    "Group",
    "InputError",
    "Jackknife",
    "LoadedDiCE",
    "Lowered",
    "LoweringError",
    "Multilevel",
    "Plugin",
    "Profile",
    "Relaxed",
    "Row",
    "SGMRLPublished",
    "Sampler",
    "SamplingError",
    "SolverError",
    "StochgraphError",
    "Taylor",
    "Trace",
    "Trial",
    "Tuning",
    "Verification",
    "VerificationError",
    "accumulate",
    "adam",
    "apply",
    "argmax",
    "ascend",
    "chunk_size",
    "chunks",
    "data",
    "descend",
    "expect",
    "graph",
    "log_prob",
    "logmeanexp",
    "mean",
    "momentum",
    "profile",
    "reduce",
    "sample",
    "solvers",
    "stop",
    "sum",
    "tune",
    "unknown",
    "vectorize",
    "verify",
    "verify_loss",
]
