"""Training prompts that give away an evaluation prompt.

A training prompt goes when, for one held-out prompt,
  (1) both have the same words and numbers; or
  (2) the held-out prompt stands whole inside the training prompt; or
  (3) both have the same numbers and operators, and at least `overlap` of the training prompt's n-grams are shared.
Templated problems share most of their text: n-grams of templates do not count for (3), other numbers make another
problem, and between templated prompts so does another answer. So "4 + 3 - 2 =" does not contaminate "4 + 3 - 5 =",
while a rewording of a held-out story does.
Decontamination by n-gram overlap with the evaluation sets: Tulu 3 (arXiv 2411.15124, sec. 3.2). The exception for
templates is ours.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from posttrain.curation.normalise import Ngram, arithmetic, boilerplate, is_arithmetic, ngrams, words, words_and_ends
from posttrain.records import Problem

SAME = "same as an evaluation prompt"
CONTAINS = "contains an evaluation prompt"
OVERLAP = "overlaps with an evaluation prompt"


class _HeldOut:
    """The evaluation prompts, indexed for the three rules."""

    def __init__(self, problems: Sequence[Problem], *, ngram: int, common: frozenset[Ngram]) -> None:
        split = [words_and_ends(problem.prompt) for problem in problems]
        self.tokens = [tokens for tokens, _ in split]
        self.whole_sentence = [len(tokens) - 1 in ends for tokens, ends in split]
        self.same = frozenset(self.tokens)
        self.numbers = [arithmetic(tokens) for tokens in self.tokens]
        self.answers = [problem.answer for problem in problems]
        self.anchors = _anchors(self.tokens, ngram)
        self.by_content: defaultdict[Ngram, list[int]] = defaultdict(list)
        for h, tokens in enumerate(self.tokens):
            for gram in ngrams(tokens, ngram) - common:
                self.by_content[gram].append(h)


def contaminated(
    problems: Sequence[Problem], heldout: Sequence[Problem], *, ngram: int, overlap: float
) -> list[str | None]:
    """Per training row None or how it is contaminated; `ngram` in words and numbers, `overlap` a share of n-grams."""
    common = boilerplate(ngrams(words(problem.prompt), ngram) for problem in [*problems, *heldout])
    held = _HeldOut(heldout, ngram=ngram, common=common)

    def reason(problem: Problem) -> str | None:
        tokens, ends = words_and_ends(problem.prompt)
        if tokens in held.same:
            return SAME
        if _contains(tokens, ends, held, ngram):
            return CONTAINS
        return OVERLAP if _overlaps(problem, tokens, held, common, ngram, overlap) else None

    return [reason(problem) for problem in problems]


def _overlaps(
    problem: Problem, tokens: Ngram, held: _HeldOut, common: frozenset[Ngram], n: int, overlap: float
) -> bool:
    every = ngrams(tokens, n)
    own = every - common
    templated = len(own) < len(every)
    numbers = arithmetic(tokens)
    shared = Counter(h for gram in own for h in held.by_content.get(gram, ()))
    return any(
        count >= overlap * len(own)
        and held.numbers[h] == numbers
        and (not templated or held.answers[h] == problem.answer)
        for h, count in shared.items()
    )


def _anchors(held: Sequence[Ngram], n: int) -> dict[Ngram, list[tuple[int, int]]]:
    """N-gram -> (held-out row, its place there), one n-gram per row: the rarest, so that few rows share one.

    Rows of fewer than n tokens have none: a prompt as short as "Why?" stands inside many others by chance.
    """
    counts = Counter(gram for tokens in held for gram in ngrams(tokens, n))
    anchors: defaultdict[Ngram, list[tuple[int, int]]] = defaultdict(list)
    for h, tokens in enumerate(held):
        if len(tokens) >= n:
            _, place = min((counts[tokens[at : at + n]], at) for at in range(len(tokens) - n + 1))
            anchors[tokens[place : place + n]].append((h, place))
    return anchors


def _contains(tokens: Ngram, ends: frozenset[int], held: _HeldOut, n: int) -> bool:
    for at in range(len(tokens) - n + 1):
        for h, place in held.anchors.get(tokens[at : at + n], ()):
            start, end = at - place, at - place + len(held.tokens[h])
            if start < 0 or tokens[start:end] != held.tokens[h] or _cut_through(tokens, start, end):
                continue
            # A question that ends a sentence must end one here, too: "... 2 cats?" is no part of "... 2 cats, 3 bees?".
            if not held.whole_sentence[h] or end - 1 in ends:
                return True
    return False


def _cut_through(tokens: Ngram, start: int, end: int) -> bool:
    """Whether an expression goes on over an edge: "What is 4 + 3" is no part of "What is 4 + 3 + 2"."""
    left = start > 0 and is_arithmetic(tokens[start - 1]) and is_arithmetic(tokens[start])
    right = end < len(tokens) and is_arithmetic(tokens[end - 1]) and is_arithmetic(tokens[end])
    return left or right
