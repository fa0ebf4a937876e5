"""One point of the growth in its own process: `python -m benchmarks.growth_point JSON`; started by benchmarks.growth.

The last line of standard output is the answer; whatever a library prints goes to standard error.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from benchmarks.growth import PRECISION, Order, params_of
from benchmarks.ours import NEVER, grpo_update
from benchmarks.settings import Size, load_settings
from benchmarks.turns import Stopped, TimedTurns
from benchmarks.worker import peak_bytes, synchronise
from benchmarks.world import Group, Work, even_share, make_groups, plain_tokens


def main() -> int:
    order = Order(**json.loads(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    growth = load_settings(Path(order.settings)).growth
    turns = TimedTurns(warmup=growth.warmup, steps=growth.steps, seconds=growth.seconds, synchronise=synchronise)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            grpo_update(make_work(order, Path(scratch)), turns)
        except Stopped:
            answers.write(json.dumps({"seconds": turns.seconds, "peak": peak_bytes()}) + "\n")
            answers.flush()
            return 0
    print("the steps came to an end before enough of them were timed", file=sys.stderr)
    return 1


def make_work(order: Order, scratch: Path) -> Work:
    settings = load_settings(Path(order.settings))
    growth = settings.growth
    point = growth.axes[order.axis][order.number]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(order.folder)
    return Work(
        folder=Path(order.folder),
        params=params_of(growth, point.model),
        size=point.size,
        groups=teaching_groups(point.size, plain_tokens(tokenizer), seed=settings.seed),
        precision=PRECISION,
        peer_batch=1,
        sequence_length=point.length,
        lr=growth.lr,
        steps=NEVER,
        seed=settings.seed,
        scratch=scratch,
    )


def teaching_groups(size: Size, token_ids: Sequence[int], *, seed: int) -> tuple[Group, ...]:
    """Groups whose rewards differ: others would cost no pass, and the operations are those of all groups."""
    one = size.model_copy(update={"prompts": 1})
    drawn = (make_groups(one, token_ids, seed=seed + number)[0] for number in itertools.count())
    teaching = (group for group in drawn if len({even_share(response) for response in group.responses}) > 1)
    return tuple(itertools.islice(teaching, size.prompts))


if __name__ == "__main__":
    sys.exit(main())
