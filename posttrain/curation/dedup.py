"""Duplicates: exact ones, contradicting ones and near ones.

Near-duplicates are prompts that ask the same in almost the same words: the same numbers and operators in the same
order, the same gold answer, and a Jaccard similarity of word shingles at or above a threshold. Shingles of a template
do not count (normalise.boilerplate): two problems of one template share most of their text and are still two problems.
MinHash LSH (Broder 1997; Leskovec et al., Mining of Massive Datasets, ch. 3) only finds the candidates; each is then
compared exactly, so that chance can miss a pair near the threshold, but never drops one that is not similar.
Of several duplicates the first one stays.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from datasketch import MinHash, MinHashLSH

from posttrain.curation.filters import Verify
from posttrain.curation.normalise import Ngram, arithmetic, boilerplate, ngrams, one_line, words
from posttrain.records import Problem

CONFLICT = "same prompt with contradicting answers"
DUPLICATE = "duplicate"
NEAR_DUPLICATE = "near-duplicate"

_HASH_SEED = 1
"""Of the MinHash permutations; which pairs become candidates must not depend on the run's seed."""
_FALSE_POSITIVES, _FALSE_NEGATIVES = 0.1, 0.9
"""What LSH's banding weighs: a false candidate costs one exact comparison, a missed one is a duplicate kept."""


def conflicts(problems: Sequence[Problem], verify: Verify) -> list[str | None]:
    """All rows of a prompt whose gold answers contradict each other: one of them is wrong, and nobody knows which."""
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for i, problem in enumerate(problems):
        groups[one_line(problem.prompt)].append(i)
    reasons: list[str | None] = [None] * len(problems)
    for members in groups.values():
        first = problems[members[0]]
        answers = {problems[i].answer for i in members} - {first.answer}
        # Written differently is not contradicting (1/2 and 0.5, a problem with several solutions): the verifier says.
        if any(verify(first, answer).status == "wrong" for answer in sorted(answers)):
            for i in members:
                reasons[i] = CONFLICT
    return reasons


def duplicates(problems: Sequence[Problem]) -> list[str | None]:
    """Rows whose prompt, but for white space, came before."""
    seen: set[str] = set()
    reasons: list[str | None] = []
    for problem in problems:
        key = one_line(problem.prompt)
        reasons.append(DUPLICATE if key in seen else None)
        seen.add(key)
    return reasons


def near_duplicates(
    problems: Sequence[Problem], *, threshold: float, permutations: int, shingle: int
) -> list[str | None]:
    """Rows that ask in almost the same words for the same as a row before; `shingle` in words and numbers."""
    tokens = [words(problem.prompt) for problem in problems]
    shingles = [ngrams(row, shingle) for row in tokens]
    common = boilerplate(shingles)
    content = [row - common or row for row in shingles]
    blocks = [(arithmetic(row), problem.answer.casefold()) for row, problem in zip(tokens, problems, strict=True)]
    sizes = Counter(blocks)

    index = MinHashLSH(threshold=threshold, num_perm=permutations, weights=(_FALSE_POSITIVES, _FALSE_NEGATIVES))
    reasons: list[str | None] = [None] * len(problems)
    for i, block in enumerate(blocks):
        if sizes[block] == 1:  # nothing it could repeat; most templated problems end here
            continue
        sketch = _sketch(content[i], permutations)
        same = (j for j in index.query(sketch) if blocks[j] == block)
        if any(jaccard(content[i], content[j]) >= threshold for j in same):
            reasons[i] = NEAR_DUPLICATE
        else:
            index.insert(i, sketch)
    return reasons


def jaccard(left: frozenset[Ngram], right: frozenset[Ngram]) -> float:
    """Shared shingles as a share of all; 0 where there are none."""
    either = len(left | right)
    return len(left & right) / either if either else 0.0


def _sketch(shingles: frozenset[Ngram], permutations: int) -> MinHash:
    sketch = MinHash(num_perm=permutations, seed=_HASH_SEED)
    sketch.update_batch(["\0".join(gram).encode() for gram in sorted(shingles)])
    return sketch
