"""Curation as one page: raw problems in, training set, held-out set and drop table out.

The held-out problems are taken after the filters of form, gold answer and repetition, stratified by source: they are
what training sees, too. The guess filter comes after them and is for training alone. It asks the base model, and a
held-out set without the problems that the base model guesses would measure later models on what the base finds hard.
The order of the rows comes from `seed` and their content, so that the order of the input does not matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from posttrain.curation.decontaminate import contaminated
from posttrain.curation.dedup import conflicts, duplicates, near_duplicates
from posttrain.curation.droptable import DropTable
from posttrain.curation.filters import Verify, empty, gold_answers, guessable, question_types
from posttrain.curation.normalise import normalised, shuffled, words
from posttrain.curation.sources import shares
from posttrain.records import DataError, Problem

Guess = Callable[[Sequence[Problem]], Mapping[str, Sequence[str | None]]]

HELD_OUT = "kept apart for evaluation"


def curate(
    problems: Iterable[Problem],
    *,
    heldout: int,
    seed: int,
    dedup_threshold: float,
    dedup_permutations: int,
    shingle_words: int,
    ngram: int,
    ngram_overlap: float,
    verify: Verify,
    guess: Guess | None,
    pretraining: AbstractSet[str] = frozenset(),
    evaluation: Sequence[Problem] = (),
) -> tuple[list[Problem], list[Problem], DropTable]:
    """(training problems, held-out problems, what was dropped); `guess` is called once, with the rows left by then.

    `pretraining`: prompts that the base model has read; they may be trained on, and are not held out.
    `evaluation`: further evaluation sets that training must not touch. `guess=None` leaves the guess filter out.
    Raises DataError when too few problems are left to hold `heldout` of them out.
    """
    table = DropTable()
    rows = shuffled(map(normalised, problems), seed)
    rows = table.apply("empty", rows, empty(rows))
    rows = table.apply("question_type", rows, question_types(rows))
    rows = table.apply("gold_answer", rows, gold_answers(rows, verify))
    rows = table.apply("conflict", rows, conflicts(rows, verify))
    rows = table.apply("duplicate", rows, duplicates(rows))
    near = near_duplicates(rows, threshold=dedup_threshold, permutations=dedup_permutations, shingle=shingle_words)
    rows = table.apply("near_duplicate", rows, near)

    known = {words(prompt) for prompt in pretraining}
    apart = hold_out([problem for problem in rows if words(problem.prompt) not in known], heldout)
    train = table.apply("held_out", rows, [HELD_OUT if problem.id in apart else None for problem in rows])
    held = [problem for problem in rows if problem.id in apart]
    leaks = contaminated(train, [*held, *evaluation], ngram=ngram, overlap=ngram_overlap)
    train = table.apply("contaminated", train, leaks)
    if guess is not None:
        train = table.apply("guessable", train, guessable(train, guess(train), verify))
    return train, held, table


def hold_out(problems: Sequence[Problem], count: int) -> frozenset[str]:
    """Ids of `count` problems: the first ones of each source, in proportion to the sources' sizes."""
    if count >= len(problems):
        left_over = f"the {len(problems)} problems left after the filters that the base model has not read"
        raise DataError(f"curate.heldout: got {count}, wanted: fewer than {left_over}")
    sizes = Counter(problem.source for problem in problems)
    left = dict(zip(sizes, shares(list(sizes.values()), count), strict=True))
    apart = set()
    for problem in problems:
        if left[problem.source]:
            left[problem.source] -= 1
            apart.add(problem.id)
    return frozenset(apart)
