"""The graph as a Mermaid flowchart: the whole text of two graphs. Mermaid itself is no dependency of the tests."""

from typing import Any

from torch.distributions import Normal

import stochgraph as sg
from tests.test_draw import GRAPHS, Walk, every, normal

say: Any = sg


@sg.graph
def adapted(theta: Any, rate: Any) -> Any:
    walk = say.sample("walk", Walk(), theta["policy"], n=10)
    value = say.sum(walk.reward * walk.state)
    new = say.ascend(theta, say.mean(value), rate)
    return say.mean(say.sample("x", Normal, new["policy"], 1.0, n=2))


@sg.graph
def awkward(theta: Any) -> Any:
    """Names that would end a label, open a tag, or be read as Markdown."""
    x = say.sample('1. "a" <b> & `c` | \\d #e', Normal, theta['x"y'], 1.0, n=3)
    return say.mean(say.apply(lambda v: v, x, name="__end__ *"))


def test_plates_times_updates_and_labels() -> None:
    assert adapted.to_mermaid().splitlines() == [
        "flowchart TD",
        '    n0["theta"]:::input',
        '    n1["rate"]:::input',
        '    n5["mean over walk"]:::operation',
        '    n6{{"theta\'<br/>ascend"}}:::update',
        '    n8[["mean over x<br/>objective"]]:::operation',
        '    subgraph p1["walk, N = 10"]',
        '        n4["sum over walk.time"]:::operation',
        '        subgraph p2["walk.time (time)"]',
        '            n2(["walk<br/>~ Walk"]):::sample',
        '            n3["mul"]:::operation',
        "        end",
        "    end",
        '    subgraph p3["x, N = 2"]',
        '        n7(["x<br/>~ Normal"]):::sample',
        "    end",
        "    style p2 stroke-dasharray: 4 4",
        '    n0 ==>|"params"| n6',
        "    n0 ==>|\"['policy']\"| n2",
        '    n1 ==>|"rate"| n6',
        '    n2 -->|".reward, .state"| n3',
        "    n3 --> n4",
        "    n4 --> n5",
        '    n5 ==>|"objective"| n6',
        "    n6 ==>|\"['policy']\"| n7",
        "    n7 --> n8",
        "    classDef input fill:#cfe2f3,stroke:#222,color:#222",
        "    classDef sample fill:#fff2cc,stroke:#222,color:#222",
        "    classDef operation fill:#fff,stroke:#7d7d7d,color:#222",
        "    classDef update fill:#fbe3e1,stroke:#b3261e,color:#222",
    ]


def test_names_are_escaped() -> None:
    name = "#49;. #34;a#34; #60;b#62; #38; #96;c#96; #124; #92;d #35;e"
    assert awkward.to_mermaid().splitlines() == [
        "flowchart TD",
        '    n0["theta"]:::input',
        f'    n3[["mean over {name.replace("#49;", "1")}<br/>objective"]]:::operation',
        f'    subgraph p1["{name}, N = 3"]',
        f'        n1(["{name}<br/>~ Normal"]):::sample',
        '        n2["#95;_end_#95; #42;"]:::operation',
        "    end",
        "    n0 ==>|\"['x#34;y']\"| n1",
        "    n1 --> n2",
        "    n2 --> n3",
        "    classDef input fill:#cfe2f3,stroke:#222,color:#222",
        "    classDef sample fill:#fff2cc,stroke:#222,color:#222",
        "    classDef operation fill:#fff,stroke:#7d7d7d,color:#222",
    ]


@every(GRAPHS)
def test_every_node_is_in_it_once_and_every_subgraph_ends(graph: sg.Graph) -> None:
    lines = [line.strip() for line in graph.to_mermaid().splitlines()]
    shown = [data for _, data in graph.networkx.nodes(data=True) if data["kind"] != "select" or data["objective"]]
    assert sum(":::" in line for line in lines) == len(shown)
    assert sum(line.startswith("subgraph") for line in lines) == lines.count("end")


def test_arithmetic_can_be_folded() -> None:
    lines = normal.to_mermaid(fold=True).splitlines()
    assert '    n2[["−(mean(x) − 1)²<br/>objective"]]:::operation' in lines
    assert [line for line in lines if "-->" in line or "==>" in line] == ["    n0 ==> n1", "    n1 --> n2"]


def test_the_direction_is_said_first() -> None:
    down, right = normal.to_mermaid(), normal.to_mermaid(direction="LR")
    assert right == down.replace("flowchart TD", "flowchart LR")
    assert right != down
