"""The tree of a search: bounds by hand, and what must hold for every tree."""

import math
import random

import pytest

from posttrain.rl.search import RULES, Proposal, Tree, puct, uct


def test_bounds_by_hand():
    """UT 13.5: N = 10, children (Q .6, n 5) and (Q .5, n 2)."""
    assert uct(0.6, 5, 10, 0.5, 1.4) == pytest.approx(1.550060, abs=1e-6)
    assert uct(0.5, 2, 10, 0.3, 1.4) == pytest.approx(2.002176, abs=1e-6)
    assert puct(0.6, 5, 10, 0.5, 1.5) == pytest.approx(0.995285, abs=1e-6)
    assert puct(0.5, 2, 10, 0.3, 1.5) == pytest.approx(0.974342, abs=1e-6)
    assert uct(0.0, 0, 1, 1.0, 1.4) == math.inf


def grown(seed, *, rule="uct", simulations=60, exploration=1.0):
    """A tree over bit strings of length 4, whose value is the share of ones; noise and proposals by seed."""
    rng = random.Random(seed)
    tree = Tree("", rule=RULES[rule], exploration=exploration)
    for _ in range(simulations):
        node = tree.select()
        if node.terminal:
            tree.backup(node, node.mean)
            continue
        bits = rng.sample("01", k=rng.choice((1, 2)))
        proposals = [Proposal(node.state + bit, rng.choice((1, 2)), len(node.state) == 3) for bit in bits]
        for child in tree.expand(node, proposals):
            tree.backup(child, child.state.count("1") / len(child.state) + 0.1 * rng.random())
    return tree


@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.parametrize("seed", range(5))
def test_what_holds_for_every_tree(rule, seed):
    tree = grown(seed, rule=rule)
    for node in tree.nodes():
        assert len(node.state) <= 4 and node.terminal == (len(node.state) == 4)
        if node.children:
            assert sum(child.visits for child in node.children) == node.visits - 1
            assert sum(child.prior for child in node.children) == pytest.approx(1.0)
            assert not node.terminal
            # A node's own value is the only one that came through none of its children.
            assert node.total >= sum(child.total for child in node.children) - 1e-12
        assert node.visits >= 1
        assert all(child.parent is node for child in node.children)


def test_the_same_seed_gives_the_same_tree():
    first, second, other = (grown(seed) for seed in (1, 1, 2))
    facts = [[(node.state, node.visits, node.total) for node in tree.nodes()] for tree in (first, second, other)]
    assert facts[0] == facts[1] != facts[2]


def test_values_add_up_along_the_line_by_hand():
    tree = Tree("r", rule=uct, exploration=1.0)
    left, right = tree.expand(tree.root, [Proposal("a", 3, False), Proposal("b", 1, True)])
    tree.backup(left, 0.5)
    tree.backup(right, 0.25)
    (below,) = tree.expand(left, [Proposal("aa", 2, True)])
    tree.backup(below, 1.0)
    assert (left.visits, left.mean, left.prior) == (2, 0.75, 0.75)
    assert (right.visits, right.mean, right.prior) == (1, 0.25, 0.25)
    assert (tree.root.visits, tree.root.total) == (4, 1.75)
    # left: .75 + sqrt(ln 4 / 2) = 1.582555; right: .25 + sqrt(ln 4) = 1.427410
    assert tree.select() is below


def test_exploration_decides_between_the_better_and_the_less_visited():
    for exploration, wanted in ((0.0, "a"), (10.0, "b")):
        tree = Tree("r", rule=uct, exploration=exploration)
        first, second = tree.expand(tree.root, [Proposal("a", 1, True), Proposal("b", 1, True)])
        for _ in range(3):
            tree.backup(first, 0.6)
        tree.backup(second, 0.5)
        assert tree.select().state == wanted


def test_ties_go_to_the_step_proposed_more_often_and_then_first():
    tree = Tree("r", rule=uct, exploration=1.0)
    tree.expand(tree.root, [Proposal("a", 1, False), Proposal("b", 2, False), Proposal("c", 2, False)])
    assert tree.select().state == "b"


def test_what_must_not_be_expanded_is_refused():
    tree = Tree("r", rule=uct, exploration=1.0)
    with pytest.raises(ValueError, match="got no proposals"):
        tree.expand(tree.root, [])
    end, _ = tree.expand(tree.root, [Proposal("a", 1, True), Proposal("b", 1, False)])
    with pytest.raises(ValueError, match="got a terminal one"):
        tree.expand(end, [Proposal("aa", 1, False)])
    with pytest.raises(ValueError, match="got an expanded one"):
        tree.expand(tree.root, [Proposal("c", 1, False)])
