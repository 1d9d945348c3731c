"""Solvers of implicit updates, and of the linear systems with their Hessians: one family a file.

A `Solver` maximises, a `LinearSolver` solves for the derivative; both work on all copies of the unknown at once, as a
matrix. To write one, subclass either.

Libraries that do the same were looked at first. TorchOpt's implicit differentiation does not work under `torch.func`
(its issue 223 asks for that, and lists why), xitorch's `rootfinder` is an autograd function without a rule for
transforms, SciPy's and `torch.optim`'s optimisers solve one problem at a time and in place; JAXopt and Optimistix,
whose division of labour this follows, are for JAX. What is needed here is short: Adam, Newton's method, L-BFGS and
conjugate gradients on a matrix of unknowns.
"""

from ._adam import Adam as Adam
from ._base import LinearSolver as LinearSolver
from ._base import Problem as Problem
from ._base import Solver as Solver
from ._closed_form import ClosedForm as ClosedForm
from ._lbfgs import LBFGS as LBFGS
from ._linear import ConjugateGradient as ConjugateGradient
from ._linear import Dense as Dense
from ._newton import Newton as Newton

__all__ = ["LBFGS", "Adam", "ClosedForm", "ConjugateGradient", "Dense", "LinearSolver", "Newton", "Problem", "Solver"]
