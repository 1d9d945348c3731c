"""The passes of the compiler in lines, compared whole."""

from textwrap import dedent

import pytest
from torch.distributions import Normal

import stochgraph as sg
from tests.problems import additive, bandit


def meta():
    @sg.graph
    def objective(theta):
        data = sg.sample("D", Normal, theta, 1.0, n=5)
        adapted = sg.descend(theta, sg.mean((data - 2.0) ** 2), 0.1)
        tau = sg.sample("tau", Normal, adapted, 1.0, n=5)
        return sg.mean(tau**2) + adapted**2

    return objective


def product():
    """A box that stays at a product of two terms, and one that moves through a constant factor."""

    @sg.graph
    def objective(theta):
        x = sg.sample("x", Normal, theta, 1.0, n=3)
        y = sg.sample("y", Normal, theta, 1.0)
        return sg.mean(x * (x + 300.0)) - 2.0 * y

    return objective


CASES = {
    "leave-one-out behind an update": (meta, sg.LOO(), "placement"),
    "linearised, with a control variate": (meta, sg.LSF(control_variate=True), "placement"),
    "leave-one-out behind two updates": (lambda: bandit(2), sg.LOO(), "placement"),
    "enumeration, which replays": (lambda: bandit(1), sg.Enumerate(), "placement"),
    "two samples": (product, {"x": sg.SF(baseline="loo"), "y": sg.SF()}, "placement"),
    "no boxes": (meta, sg.PW(), "placement"),
    "what reaches what": (meta, sg.MAML(), "reach"),
    "what was built": (additive, sg.LOO(), "build"),
    "what runs": (bandit, sg.SF(), "program"),
    "what runs where leave-one-out replays": (bandit, sg.LOO(), "program"),
}
EXPECTED = {
    "leave-one-out behind an update": """
        objective add
          box(D)    at add          moves → mean(pow_2) and pow_3
          box(D)    at mean(pow_2)  moves through → pow_2, stays there: `pow_2` is not linear; kept along ()
          box(D)    at pow_3        stays: `pow_3` is not linear; kept along ()
          box(tau)  at add          moves → mean(pow_2); dropped at pow_3: tau does not reach it
          box(tau)  at mean(pow_2)  moves through → pow_2, stays there: `pow_2` is not linear; kept along (tau)
          control   of D            at add, on the part that its box covers
          control   of tau          at pow_2, on the part that its box covers
        objective mean(pow) of theta'
          score(D)  at mean(pow)  moves through → pow, stays there: `pow` is not linear; kept along (D)
    """,
    "linearised, with a control variate": """
        objective add
          box(tau)  below mean(pow_2)  stays: `pow_2` is not linear; kept along (tau)
          control   of tau             at pow_2, on the part that its box covers
        objective mean(pow) of theta'
          score(D)  at mean(pow)  moves through → pow, stays there: `pow` is not linear; kept along (D)
    """,
    "leave-one-out behind two updates": """
        objective mean(lambda_3)
          box(D1)   at mean(lambda_3)  moves through → lambda_3, stays there: `lambda_3` is not linear; kept along ()
          box(D2)   at mean(lambda_3)  moves through → lambda_3, stays there: `lambda_3` is not linear; kept along ()
          box(tau)  at mean(lambda_3)  moves through → lambda_3, stays there: `lambda_3` is not linear; kept along (tau)
          control   of D1              at mean(lambda_3), on the part that its box covers
          control   of D2              at mean(lambda_3), on the part that its box covers
          control   of tau             at lambda_3, on the part that its box covers
        objective mean(lambda_3), again: mean(lambda_3)
          box(D1)   at mean(lambda_3)  moves through → lambda_3, stays there: `lambda_3` is not linear; kept along ()
          box(D2)   at mean(lambda_3)  moves through → lambda_3, stays there: `lambda_3` is not linear; kept along ()
          box(tau)  at mean(lambda_3)  moves through → lambda_3, stays there: `lambda_3` is not linear; kept along (tau)
          control   of D2              at mean(lambda_3), on the part that its box covers
        objective mean(lambda) of theta'
          score(D1)  at mean(lambda)  moves through → lambda, stays there: `lambda` is not linear; kept along (D1)
        objective mean(lambda_2) of theta''
          score(D2)  at mean(lambda_2)  moves through → lambda_2, stays there: `lambda_2` is not linear; kept along (D2)
    """,
    "enumeration, which replays": """
        objective mean(lambda_2)
          box(D1)   at mean(lambda_2)  moves through → lambda_2, stays there: `lambda_2` is not linear; kept along ()
          box(tau)  at mean(lambda_2)  moves through → lambda_2, stays there: `lambda_2` is not linear; kept along (tau)
        objective mean(lambda) of theta'
          score(D1)  at mean(lambda)  moves through → lambda, stays there: `lambda` is not linear; kept along (D1)
        replays: objective mean(lambda_2), again: lambda_2
          box(tau)  at lambda_2  stays: `lambda_2` is not linear; kept along (tau)
        replays: objective mean(lambda) of theta'
          score(D1)  at mean(lambda)  moves through → lambda, stays there: `lambda` is not linear; kept along (D1)
    """,
    "two samples": """
        objective sub
          box(x)   at sub        moves → mean(mul); dropped at mul_2: x does not reach it
          box(x)   at mean(mul)  moves through → mul, stays there: `mul` is not linear; kept along (x)
          box(y)   at sub        moves → mul_2; dropped at mean(mul): y does not reach it
          box(y)   at mul_2      moves through → y, stays there: `y` is not linear; kept along ()
          control  of x          at mul, on the part that its box covers
    """,
    "no boxes": """
        objective add: no boxes
    """,
    "what reaches what": """
        objective add
          D            boxes of  D (D)
          sub          boxes of  D (D)
          pow          boxes of  D (D)
          mean(pow)    boxes of  D ()
          tau          boxes of  tau (tau)
          pow_2        boxes of  tau (tau)
          mean(pow_2)  boxes of  tau ()
          add          boxes of  tau ()
        objective mean(pow) of theta'
          D          scores of  D (D)
          sub        scores of  D (D)
          pow        scores of  D (D)
          mean(pow)  scores of  D ()
    """,
    "what was built": """
        objective neg
          pow  with x               = box of pow, weight(x)
          neg  with x               = apply of box(pow)
          neg  with x uncontrolled  = controlled of neg, control variate(neg, x)
    """,
    "what runs": """
        0    input       theta           ()
        1    sample      D1              (D1)   reads 0
        2    apply       lambda          (D1)   reads 1
        3.0  score       log p(D1)       (D1)   reads 1, theta
        3.1  weight      weight(D1)      (D1)   reads 3.0
        3.2  score term  score(lambda)   (D1)   reads 2, 3.1
        3.3  reduction   mean(lambda)    ()     reads 3.2
        3    update      theta'          ()     reads 0, 1, 2
        4    sample      tau             (tau)  reads 3
        5    score       log p(tau)      (tau)  reads 4, 3
        6    weight      weight(tau)     (tau)  reads 5
        7    score       log p(D1)       (D1)   reads 1, 0
        8    weight      weight(D1)      ()     reads 7
        9    total       total           (tau)  reads 8, 6
        10   apply       lambda_2        (tau)  reads 4
        11   box         box(lambda_2)   (tau)  reads 10, 9
        12   reduction   mean(lambda_2)  ()     reads 11
    """,
    "what runs where leave-one-out replays": """
        0       input            theta                                ()
        1       sample           D1                                   (D1)           reads 0
        2       apply            lambda                               (D1)           reads 1
        3.0     score            log p(D1)                            (D1)           reads 1, theta
        3.1     weight           weight(D1)                           (D1)           reads 3.0
        3.2     score term       score(lambda)                        (D1)           reads 2, 3.1
        3.3     reduction        mean(lambda)                         ()             reads 3.2
        3       update           theta'                               ()             reads 0, 1, 2
        4       sample           tau                                  (tau)          reads 3
        5       score            log p(D1)                            (D1)           reads 1, 0
        6       apply            lambda_2                             (tau)          reads 4
        7       score            log p(tau)                           (tau)          reads 4, 3
        8       weight           weight(tau)                          (tau)          reads 7
        9       weight           weight(D1)                           ()             reads 5
        10      total            total                                (tau)          reads 9, 8
        11      box              box(lambda_2)                        (tau)          reads 6, 10
        12      weight           weight(D1)                           (D1)           reads 5
        13.0.0  score            log p(D1)                            (D1)           reads 1, theta
        13.0.1  weight           weight(D1)                           (D1)           reads 13.0.0
        13.0.2  score term       score(lambda)                        (D1)           reads 2, 13.0.1
        13.0.3  reduction        mean(lambda)                         ()             reads 13.0.2
        13.0    update           theta'                               ()             reads 0, 1, 2
        13.1    score            log p(tau)                           (tau)          reads 4, 13.0
        13.2    weight           weight(tau)                          (tau)          reads 13.1
        13.3    weight           weight(D1)                           ()             reads 5
        13.4    total            total                                (tau)          reads 13.3, 13.2
        13.5    box              box(lambda_2)                        (tau)          reads 6, 13.4
        13.6    reduction        mean(lambda_2)                       ()             reads 13.5
        13      replay           replay(mean(lambda_2))               (D1 left out)  reads 7, 5, 0, 1, 2, 4, 5, 6
        14      control variate  control variate(mean(lambda_2), D1)  ()             reads 13, 12
        15      reduction        mean(lambda_2)                       ()             reads 11
        16      controlled       mean(lambda_2)                       ()             reads 15, 14
    """,
}


@pytest.mark.parametrize("name", CASES)
def test_whole_output(name):
    make, estimators, stage = CASES[name]
    assert make().compile(estimators).show(stage) == dedent(EXPECTED[name]).strip("\n")


def test_every_row_that_is_placed_is_told_of():
    """Rows and table: a box for every start, a control for every decision that has one."""
    compiled = bandit(3).compile(sg.LOO())
    placement = compiled._derivation.placement
    controlled = [s for decision in placement.table.values() for s in decision.controlled]
    lines = compiled.show("placement").splitlines()
    assert sum(line.startswith("  control") for line in lines) == len(controlled) > 3
    assert sum(line.startswith("  box(") for line in lines) >= 4


def test_an_unknown_stage_is_refused_with_the_list():
    with pytest.raises(ValueError, match="'reach', 'placement', 'build', 'program' is expected"):
        bandit().compile(sg.SF()).show("run")
