"""Next-token training on masked examples: cold start, mode fusion, off-policy distillation, and pre-training.

Examples are shuffled anew each epoch, taken in that order until a step has its tokens, and packed into one row in which
none sees its neighbours. The loss is the mean over the trained tokens of the step. Nothing but the checkpoint's step
number is needed to resume: the order follows from the seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor, nn

from posttrain import config
from posttrain.engine.checkpoint import latest_checkpoint, save_checkpoint
from posttrain.engine.distributed import rank, world_size
from posttrain.engine.packing import Packed, Response, pack, plan
from posttrain.engine.policy import Policy, predicted_logprobs
from posttrain.engine.trainer import LossFn, Trainer
from posttrain.loops.clock import Clock
from posttrain.loops.ending import refuse_other_end
from posttrain.losses.sft import sft_loss
from posttrain.records import DataError

Example = tuple[Sequence[int], Sequence[int]]
"""Token ids, and a mask of equal length: 1 = trained."""

EDGE = 10
"""Steps over which the first and the last loss are averaged."""


def run_sft(
    policy: Policy,
    examples: Sequence[Example],
    *,
    optimizer: config.Optimizer,
    epochs: float,
    batch_tokens: int,
    sequence_length: int,
    engine: config.Engine,
    seed: int,
    log: Callable[[dict[str, float], int], None],
    checkpoints: Path,
    save_every: int,
) -> dict[str, float]:
    """Train `policy` in place on (ids, mask) examples; those longer than `sequence_length` tokens are left out.

    Continues from the last checkpoint in `checkpoints`, with the result of a run that was never interrupted.
    """
    kept = [example for example in examples if len(example[0]) <= sequence_length]
    if not kept:
        raise DataError(f"none of {len(examples)} examples has at most {sequence_length} tokens (sequence_length)")
    plan = plan_steps([len(ids) for ids, _ in kept], epochs=epochs, batch_tokens=batch_tokens, seed=seed)
    trainer = Trainer(policy.model, optimizer=optimizer, total_steps=len(plan), engine=engine, seed=seed)
    losses: list[float] = []
    if found := latest_checkpoint(checkpoints):
        trainer.load_state_dict(found[1]["trainer"])
        losses = found[1]["losses"]
    for step in range(trainer.steps_done, len(plan)):
        clock = Clock()
        chosen = [kept[index] for index in plan[step]]
        parts = packed_parts(chosen, tokens=engine.micro_batch_tokens)
        trained = sum(sum(mask[1:]) for _, mask in chosen)
        stats = trainer.step([part.to(trainer.model.device) for part in parts], make_loss(tokens=trained))
        losses.append(stats.loss)
        measured = {"train/loss": stats.loss, "train/grad_norm": stats.grad_norm, "train/learning_rate": stats.lr}
        log(measured | clock.metrics(tokens=sum(len(ids) for ids, _ in chosen)), step + 1)
        if (step + 1) % save_every == 0 and step + 1 < len(plan):
            save_checkpoint(checkpoints, step + 1, {"trainer": trainer.state_dict(), "losses": losses})
    refuse_other_end(trainer.steps_done, len(plan))
    first, last = losses[:EDGE], losses[-EDGE:]
    return {
        "steps": len(plan),
        "examples": len(kept),
        "too_long": len(examples) - len(kept),
        "loss_start": sum(first) / len(first),
        "loss_end": sum(last) / len(last),
    }


def plan_steps(lengths: Sequence[int], *, epochs: float, batch_tokens: int, seed: int) -> list[list[int]]:
    """Example indices of each step: equal shares of `epochs` passes, of about `batch_tokens` tokens; at least one.

    Shares are counted from the start, so that what one step takes too much the next takes less.
    """
    total = epochs * sum(lengths)
    steps = max(1, round(total / batch_tokens))
    rng = random.Random(seed)
    plan: list[list[int]] = []
    order: list[int] = []
    taken = 0
    for step in range(steps):
        chosen: list[int] = []
        while taken < total * (step + 1) / steps or not chosen:
            if not order:
                order = rng.sample(range(len(lengths)), len(lengths))
            chosen.append(order.pop())
            taken += lengths[chosen[-1]]
        plan.append(chosen)
    return plan


def packed_parts(examples: Sequence[Example], *, tokens: int) -> list[Packed]:
    """This rank's share of the step's examples, as micro-batches of at most `tokens` tokens."""
    # Longest first, so that the ranks' shares are alike.
    own = sorted(examples, key=lambda example: -len(example[0]))[rank() :: world_size()]
    responses: list[Response] = [((), tuple(ids)) for ids, _ in own]
    # The first token of an example is predicted by nothing.
    trained = [[0, *mask[1:]] for _, mask in own]
    groups = plan([[response] for response in responses], tokens=tokens)
    return [pack([responses[i] for i in group], wanted=[trained[i] for i in group]) for group in groups]


def make_loss(*, tokens: int) -> LossFn[Packed]:
    """The loss of a micro-batch in a step with `tokens` trained tokens."""

    def loss_fn(model: nn.Module, packed: Packed) -> tuple[Tensor, dict[str, Tensor]]:
        return sft_loss(predicted_logprobs(model, packed, temperature=1.0), tokens=tokens), {}

    return loss_fn
