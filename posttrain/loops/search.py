"""Monte-Carlo tree search for an answer: the policy proposes steps, a step scorer values what is written so far.

Everything the policy generates counts towards the budget, also what is cut off behind a step, so that search and best
of N can be compared at equal tokens; the tokens that the scorer reads are counted apart. Sampling stops at every token
in which a step could end, and goes on where it has not. A leaf gets all its children at once, and each one's value is
that of its prefix: no rollouts, and no gold answer. The result is the complete response of the highest value; where
none is complete when the budget is about to end, the most visited line is completed with the `reserve` kept for it.

All problems take their steps together, so that the engine has batches.

Sources: algorithms.md 13.5; DeepSeek-R1, arXiv 2501.12948, section 4.2 (a cap on children, and its price).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerFast

from posttrain import config
from posttrain.chat.template import END_OF_TEXT, TURN_END, render_prompt, special_id
from posttrain.engine.rollout import Request, RolloutEngine
from posttrain.loops.process_reward import StepScorer
from posttrain.loops.sample import Sample, read_samples
from posttrain.loops.step_labels import join
from posttrain.records import Message, Problem, Rollout
from posttrain.rewards.steps import split_steps
from posttrain.rl.search import Node, Proposal, Rule, Tree

Values = Callable[[Sequence[float]], float]
"""One value of a prefix from those of its steps: an entry of posttrain.rewards.steps.AGGREGATIONS."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    sample: Sample
    value: float
    tokens: int
    """Generated for this problem, all of them."""
    tokens_scored: int
    """Read by the scorer, prompts included."""
    nodes: int


@dataclass(slots=True)
class _Search:
    """One problem's search."""

    problem: Problem
    tree: Tree[Rollout]
    budget: int
    simulations: int = 0
    tokens: int = 0
    tokens_scored: int = 0
    complete: list[tuple[float, Sample]] = field(default_factory=list)

    def leaf(self, *, reserve: int, simulations: int) -> Node[Rollout] | None:
        """The next node to expand; None when tokens or simulations are used up. A terminal one is only visited."""
        while self.simulations < simulations and self.tokens < self.budget - (0 if self.complete else reserve):
            self.simulations += 1
            node = self.tree.select()
            if not node.terminal:
                return node
            self.tree.backup(node, node.mean)
        return None


@dataclass(frozen=True, slots=True)
class Searcher:
    """What stays the same in all searches."""

    engine: RolloutEngine
    tokenizer: PreTrainedTokenizerFast
    scorer: StepScorer
    values: Values
    rule: Rule
    exploration: float
    width: int
    """Steps proposed at a node; equal ones become one child."""
    generation: config.Generation
    reserve: int
    """Tokens kept back as long as no response is complete."""
    simulations: int
    """Most descents per problem: a tree whose best leaves are terminal costs no more tokens, and would never end."""

    def search(self, problems: Sequence[Problem], *, budgets: Sequence[int], seed: int) -> list[SearchResult]:
        """The response found for each problem with at most its budget of generated tokens, or little more."""
        searches = [self._open(problem, budget) for problem, budget in zip(problems, budgets, strict=True)]
        stepper = StepSampler(self.engine, self.tokenizer, self.generation, seed=seed)
        while True:
            found = [(s, s.leaf(reserve=self.reserve, simulations=self.simulations)) for s in searches]
            leaves = [(search, node) for search, node in found if node is not None]
            if not leaves:
                break
            proposed = stepper.next_steps([node.state for _, node in leaves], samples=self.width)
            children: list[tuple[_Search, Node[Rollout]]] = []
            for (search, node), (rollouts, tokens) in zip(leaves, proposed, strict=True):
                search.tokens += tokens
                children += [(search, child) for child in search.tree.expand(node, self._merge(rollouts, stepper))]
            self._value(children)
        unfinished = [search for search in searches if not search.complete]
        self._finish(unfinished, stepper)
        return [self._result(search) for search in searches]

    def _open(self, problem: Problem, budget: int) -> _Search:
        prompt_ids = tuple(render_prompt(self.tokenizer, [Message("user", problem.prompt)], "think"))
        root = Rollout(problem.id, prompt_ids, (), (), "length", ())
        return _Search(problem, Tree(root, rule=self.rule, exploration=self.exploration), budget)

    def _merge(self, rollouts: Sequence[Rollout], stepper: StepSampler) -> list[Proposal[Rollout]]:
        """Equal steps as one proposal, in the order of their first appearance."""
        times = Counter(rollout.response_ids for rollout in rollouts)
        first = {rollout.response_ids: rollout for rollout in reversed(rollouts)}
        return [Proposal(first[ids], count, stepper.ended(first[ids])) for ids, count in times.items()]

    def _value(self, children: Sequence[tuple[_Search, Node[Rollout]]]) -> None:
        """Score new nodes, back their values up, and keep those that are complete."""
        samples = read_samples(self.tokenizer, [(search.problem, "think", node.state) for search, node in children])
        scored = self.scorer(samples)
        for (search, node), sample, steps in zip(children, samples, scored, strict=True):
            value = self.values([step.reward for step in steps])
            search.tree.backup(node, value)
            search.tokens_scored += len(node.state.prompt_ids) + sample.tokens
            if node.terminal:
                search.complete.append((value, sample))

    def _finish(self, searches: Sequence[_Search], stepper: StepSampler) -> None:
        """Complete the most visited line of each."""
        if not searches:
            return
        lines = [most_visited(search.tree) for search in searches]
        ends = stepper.to_the_end([node.state for node in lines])
        children = []
        for search, node, (rollout, took) in zip(searches, lines, ends, strict=True):
            search.tokens += took
            children += [(search, child) for child in search.tree.expand(node, [Proposal(rollout, 1, True)])]
        self._value(children)

    def _result(self, search: _Search) -> SearchResult:
        value, sample = max(search.complete, key=lambda found: found[0])
        return SearchResult(sample, value, search.tokens, search.tokens_scored, len(search.tree.nodes()))


def most_visited(tree: Tree[Rollout]) -> Node[Rollout]:
    """The leaf reached by following the visits; the higher value where they are equal."""
    node = tree.root
    while node.children:
        node = max(node.children, key=lambda child: (child.visits, child.mean))
    return node


class StepSampler:
    """Samples one more step of responses; every call draws anew, the same for the same seed."""

    def __init__(
        self,
        engine: RolloutEngine,
        tokenizer: PreTrainedTokenizerFast,
        generation: config.Generation,
        *,
        seed: int,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._generation = generation
        self._seed = seed
        self._calls = 0
        self._end_ids = frozenset(special_id(tokenizer, token) for token in (TURN_END, END_OF_TEXT))
        pieces = tokenizer.backend_tokenizer.decode_batch([[i] for i in range(len(tokenizer))])
        boundaries = {i for i, piece in enumerate(pieces) if "," in piece or "." in piece}
        self._pauses = sorted(boundaries | self._end_ids)
        """Tokens in which a step can end."""

    def ended(self, rollout: Rollout) -> bool:
        """Whether a response is over: by its end token, or by length."""
        ids = rollout.response_ids
        return len(ids) >= self._generation.max_new_tokens or (bool(ids) and ids[-1] in self._end_ids)

    def next_steps(self, starts: Sequence[Rollout], *, samples: int) -> list[tuple[list[Rollout], int]]:
        """Per start: `samples` continuations to the end of their next step, and the tokens all of them took."""
        owners = [owner for owner in range(len(starts)) for _ in range(samples)]
        tokens = [0] * len(starts)
        drafts: list[Rollout] = []
        cut: list[Rollout | None] = []
        for owner, (draft, took) in zip(owners, self._sample(starts, samples, self._pauses), strict=True):
            tokens[owner] += took
            drafts.append(draft)
            cut.append(self._cut(draft, len(starts[owner].response_ids)))
        while missing := [number for number, found in enumerate(cut) if found is None]:
            longer = self._sample([drafts[number] for number in missing], 1, self._pauses)
            for number, (draft, took) in zip(missing, longer, strict=True):
                tokens[owners[number]] += took
                drafts[number] = draft
                cut[number] = self._cut(draft, len(starts[owners[number]].response_ids))
        steps = [found for found in cut if found is not None]
        return [(steps[owner * samples : (owner + 1) * samples], tokens[owner]) for owner in range(len(starts))]

    def to_the_end(self, starts: Sequence[Rollout]) -> list[tuple[Rollout, int]]:
        """One whole response from each start, and the tokens that took."""
        return self._sample(starts, 1, sorted(self._end_ids))

    def _sample(self, starts: Sequence[Rollout], samples: int, stop_ids: Sequence[int]) -> list[tuple[Rollout, int]]:
        """Continuations joined to their starts, and the tokens generated; no response exceeds max_new_tokens.

        What the engine generates beyond that for the longer ones of a batch is cut off, and counted.
        """
        self._calls += 1
        limit = self._generation.max_new_tokens
        room = limit - min(len(start.response_ids) for start in starts)
        found = self._engine.generate(
            [Request(start.problem_id, start.prompt_ids + start.response_ids) for start in starts],
            samples=samples,
            generation=self._generation.model_copy(update={"max_new_tokens": room}),
            seed=(self._seed * 1009 + self._calls) % 2**31,
            stop_ids=stop_ids,
        )
        sources = [start for start in starts for _ in range(samples)]
        return [
            (join(start, len(start.response_ids), further, limit=limit), len(further.response_ids))
            for start, further in zip(sources, found, strict=True)
        ]

    def _cut(self, draft: Rollout, start: int) -> Rollout | None:
        """The draft up to the end of the first step that ends behind token `start`; None: no step has ended yet."""
        for step in split_steps(self._tokenizer, draft.response_ids):
            if step.end >= start and step.kind not in ("answer", "unfinished"):
                return beginning(draft, step.end + 1)
        return draft if self.ended(draft) else None


def beginning(rollout: Rollout, tokens: int) -> Rollout:
    """The first tokens of a response, as one that has not ended."""
    parts = (rollout.response_ids[:tokens], rollout.logprobs[:tokens])
    return Rollout(rollout.problem_id, rollout.prompt_ids, *parts, "length", rollout.version_per_token[:tokens])
