"""One algorithm a file, each a function that returns a graph and its estimators; and what runs them.

What an algorithm is asked, and what it returns::

    from stochgraph.algorithms.objectives.meta_policy_gradient import MetaProblem, adapted_return
    from stochgraph.algorithms.objectives.template import Template

Templates, functions of a `MetaProblem`::

    from stochgraph.algorithms.bomrl import bomrl, fixed_sample_bomrl, practical_bomrl, tabular_bomrl
    from stochgraph.algorithms.emaml import emaml, emaml_published
    from stochgraph.algorithms.loo import loo
    from stochgraph.algorithms.lsf import dice_maml, lsf
    from stochgraph.algorithms.maml import first_order_maml, maml
    from stochgraph.algorithms.meta_sgd import LearnedRates, meta_sgd
    from stochgraph.algorithms.promp import promp
    from stochgraph.algorithms.sgmrl import sgmrl, sgmrl_first_order, sgmrl_published
    from stochgraph.algorithms.tmaml import tmaml

The same with a learned discount and step size of the inner steps::

    from stochgraph.algorithms.objectives.learned_return import learned_return, meta_parameters

Templates without inner steps, of a `MetaProblem` with `steps=0`::

    from stochgraph.algorithms.a2c import a2c
    from stochgraph.algorithms.ppo import ppo
    from stochgraph.algorithms.reinforce import reinforce

What their theorems depend on, as printed and corrected::

    from stochgraph.algorithms.exact.convergence_constants import BOMRLConstants, LSFConstants, SGMRLConstants

Inner steps and baselines, for objectives of one's own::

    from stochgraph.algorithms.inner_steps.advantages import LinearBaseline
    from stochgraph.algorithms.inner_steps.policy_gradient import advantages, ascend_advantages, ascend_returns
    from stochgraph.algorithms.inner_steps.proximal import proximal_step
    from stochgraph.algorithms.objectives.replays import adapted_divergence
    from stochgraph.algorithms.inner_steps.tabular_steps import improve_table, tabular_step

What trajectories are drawn with::

    from stochgraph.algorithms.environments import Environment, FrozenLake, GymnasiumEnvironment, Navigation, RandomMDP
    from stochgraph.algorithms.policies import CategoricalMLP, GaussianMLP, HeteroscedasticMLP, TabularSoftmax
    from stochgraph.algorithms.policies import ActorCritic, CategoricalGRU, GaussianGRU
    from stochgraph.algorithms.rollouts import Rollouts

Runs, as on the command line::

    from stochgraph.algorithms.training import Configuration, Problem, load_result, train
"""
