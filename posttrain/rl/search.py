"""Monte-Carlo tree search over steps: the tree alone, without a model.

A node is a response up to the end of a step. `select` goes down from the root, at each node to the child with the
highest upper bound, until it meets a node without children. `expand` gives that node its children, whose priors are
how often each was proposed, and `backup` adds a value to a node and to all above it. Who proposes steps and who values
nodes is the caller's business, and so is the budget (posttrain.loops.search).

    UCT    Q + c sqrt(ln N / n)               Kocsis and Szepesvari (2006); a child never visited comes first
    PUCT   Q + c P sqrt(N) / (1 + n)          Silver et al., arXiv 1712.01815

Q is the mean of the values backed up, N the parent's visits, n the child's, P its prior. A node is visited first when
its own value is backed up; every later visit passes through a child, so that an expanded node has one visit more than
its children together. Terminal nodes are visited again and again, and never expanded. There is no chance in the tree:
ties go to the child proposed more often, then to the one proposed first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

State = TypeVar("State")


@dataclass(slots=True)
class Node(Generic[State]):
    state: State
    parent: Node[State] | None
    prior: float
    """Share of the parent's proposals that were this step; 1 at the root."""
    terminal: bool
    visits: int = 0
    total: float = 0.0
    """Sum of the values backed up."""
    children: list[Node[State]] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Q; 0 before the first visit."""
        return self.total / self.visits if self.visits else 0.0


@dataclass(frozen=True, slots=True)
class Proposal(Generic[State]):
    """A possible next step, and how many of the proposals were this one."""

    state: State
    times: int
    terminal: bool


Rule = Callable[[float, int, int, float, float], float]
"""(Q, n, N, P, c) -> upper bound."""


def uct(mean: float, visits: int, parent_visits: int, prior: float, c: float) -> float:
    """Q + c sqrt(ln N / n); infinite for n = 0."""
    return mean + c * math.sqrt(math.log(parent_visits) / visits) if visits else math.inf


def puct(mean: float, visits: int, parent_visits: int, prior: float, c: float) -> float:
    """Q + c P sqrt(N) / (1 + n)."""
    return mean + c * prior * math.sqrt(parent_visits) / (1 + visits)


RULES: Mapping[str, Rule] = {"uct": uct, "puct": puct}


class Tree(Generic[State]):
    """The visits and values of one search."""

    def __init__(self, root: State, *, rule: Rule, exploration: float) -> None:
        self.root = Node(root, None, 1.0, terminal=False)
        # The root's own value is compared with nothing; the visit makes it a node like the others.
        self.root.visits = 1
        self._rule = rule
        self._exploration = exploration

    def select(self) -> Node[State]:
        """The node without children (or terminal) at which the upper bounds lead out of the tree."""
        node = self.root
        while node.children:
            parent = node
            node = max(parent.children, key=lambda child: (self._bound(child, parent.visits), child.prior))
        return node

    def _bound(self, child: Node[State], parent_visits: int) -> float:
        return self._rule(child.mean, child.visits, parent_visits, child.prior, self._exploration)

    def expand(self, node: Node[State], proposals: Sequence[Proposal[State]]) -> list[Node[State]]:
        """The new children of a node, which is neither terminal nor expanded yet (ValueError); each needs a backup."""
        if node.terminal or node.children or not proposals:
            wrong = "a terminal one" if node.terminal else "an expanded one" if node.children else "no proposals"
            raise ValueError(f"expand: got {wrong}, wanted a node that is open, and at least one proposal")
        total = sum(proposal.times for proposal in proposals)
        node.children = [Node(p.state, node, p.times / total, p.terminal) for p in proposals]
        return node.children

    def backup(self, node: Node[State], value: float) -> None:
        """Add `value` and a visit to `node` and to every node above it."""
        above: Node[State] | None = node
        while above is not None:
            above.visits += 1
            above.total += value
            above = above.parent

    def nodes(self) -> list[Node[State]]:
        """All nodes, parents before children."""
        found = [self.root]
        for node in found:
            found += node.children
        return found
