"""Direct preference optimisation on pairs of responses (arXiv 2305.18290).

The reference is the policy at the start; its log-probabilities are computed once and kept. Watch the chosen responses'
log-probability: it may fall while the margin grows, which a weight on their likelihood prevents.

Shapes: B pairs, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain import config
from posttrain.engine.batching import micro_batches
from posttrain.engine.checkpoint import latest_checkpoint, save_checkpoint
from posttrain.engine.distributed import rank, world_size
from posttrain.engine.policy import Policy, sequence_logprobs
from posttrain.engine.trainer import Trainer
from posttrain.loops.clock import Clock
from posttrain.loops.pair_inputs import pair_ids
from posttrain.loops.scoring import MICRO_BATCH_TOKENS, Response, epoch_batches, response_length, response_mask, score
from posttrain.losses.preference import dpo, log_ratio_margin
from posttrain.records import Pair


@dataclass(frozen=True, slots=True)
class Scored:
    """A pair in token ids, with the reference's log-probabilities of both responses (nats, summed over tokens)."""

    chosen: Response
    rejected: Response
    reference_chosen: float
    reference_rejected: float


@dataclass(frozen=True, slots=True)
class PairBatch:
    ids_BT: Tensor
    """2B rows: the chosen responses, then the rejected ones."""
    mask_BT: Tensor
    reference_chosen_B: Tensor
    reference_rejected_B: Tensor


def run_dpo(
    policy: Policy,
    pairs: Sequence[Pair],
    *,
    section: config.Align,
    engine: config.Engine,
    seed: int,
    log: Callable[[dict[str, float], int], None],
    checkpoints: Path,
    save_every: int,
    micro_batch_tokens: int = MICRO_BATCH_TOKENS,
) -> dict[str, float]:
    """Train `policy` in place on the `train` pairs; returns what the `heldout` pairs say afterwards.

    Continues from the last checkpoint, with the result of a run that was never interrupted.
    """
    train = scored_pairs(policy, [p for p in pairs if p.split == "train"], micro_batch_tokens=micro_batch_tokens)
    heldout = scored_pairs(policy, [p for p in pairs if p.split == "heldout"], micro_batch_tokens=micro_batch_tokens)
    batches = epoch_batches(len(train), size=section.batch_pairs, epochs=section.epochs, seed=seed)
    trainer = Trainer(policy.model, optimizer=section.optimizer, total_steps=len(batches), engine=engine, seed=seed)
    if found := latest_checkpoint(checkpoints):
        trainer.load_state_dict(found[1]["trainer"])
    for step in range(trainer.steps_done, len(batches)):
        clock = Clock()
        chosen = [train[i] for i in batches[step]]
        parts = make_pair_batches(
            chosen[rank() :: world_size()], tokens=micro_batch_tokens, device=trainer.model.device
        )
        stats = trainer.step(parts, make_dpo_loss(chosen, beta=section.beta, sft_weight=section.sft_weight))
        tokens = sum(response_length(pair.chosen) + response_length(pair.rejected) for pair in chosen)
        measured = {"train/loss": stats.loss, "train/grad_norm": stats.grad_norm, "train/learning_rate": stats.lr}
        log(measured | stats.metrics | clock.metrics(tokens=tokens), step + 1)
        if (step + 1) % save_every == 0 and step + 1 < len(batches):
            save_checkpoint(checkpoints, step + 1, {"trainer": trainer.state_dict()})
    after = judge_pairs(trainer.model, heldout, beta=section.beta, micro_batch_tokens=micro_batch_tokens)
    return {"steps": len(batches), "train_pairs": len(train), "heldout_pairs": len(heldout), **after}


def scored_pairs(policy: Policy, pairs: Sequence[Pair], *, micro_batch_tokens: int) -> list[Scored]:
    """The pairs with the log-probabilities that `policy` gives them now."""
    both = [pair_ids(policy.tokenizer, pair) for pair in pairs]
    flat = [response for pair in both for response in pair]
    sums = [float(s.sum()) for s in score(policy.model, flat, micro_batch_tokens=micro_batch_tokens, temperature=1.0)]
    return [
        Scored(chosen, rejected, of_chosen, of_rejected)
        for (chosen, rejected), of_chosen, of_rejected in zip(both, sums[::2], sums[1::2], strict=True)
    ]


def make_pair_batches(pairs: Sequence[Scored], *, tokens: int, device: torch.device) -> list[PairBatch]:
    """Micro-batches of like lengths, each of at most `tokens` padded tokens."""
    lengths = [2 * max(response_length(pair.chosen), response_length(pair.rejected)) for pair in pairs]
    return [collate_pairs([pairs[i] for i in group], device) for group in micro_batches(lengths, tokens=tokens)]


def collate_pairs(pairs: Sequence[Scored], device: torch.device) -> PairBatch:
    """Tensors of a micro-batch."""
    ids_BT, mask_BT = response_mask([pair.chosen for pair in pairs] + [pair.rejected for pair in pairs])
    return PairBatch(
        ids_BT.to(device),
        mask_BT.to(device),
        torch.tensor([pair.reference_chosen for pair in pairs], device=device),
        torch.tensor([pair.reference_rejected for pair in pairs], device=device),
    )


def make_dpo_loss(
    pairs: Sequence[Scored], *, beta: float, sft_weight: float
) -> Callable[[nn.Module, PairBatch], tuple[Tensor, dict[str, Tensor]]]:
    """Loss and metrics of a micro-batch, as additive parts of those of the whole batch `pairs`."""
    count = len(pairs)
    chosen_tokens = sum(len(pair.chosen[1]) for pair in pairs)

    def loss_fn(model: nn.Module, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
        logprobs_BT = sequence_logprobs(model, batch.ids_BT, batch.mask_BT, temperature=1.0)
        chosen_B, rejected_B = logprobs_BT.sum(1).chunk(2)
        margin_B = log_ratio_margin(chosen_B, rejected_B, batch.reference_chosen_B, batch.reference_rejected_B)
        loss = dpo(margin_B, beta=beta).sum() / count
        likelihood = -chosen_B.sum() / chosen_tokens
        return loss + sft_weight * likelihood, {
            "reward/margin": beta * margin_B.sum() / count,
            "reward/pair_accuracy": (margin_B > 0).sum() / count,
            "reward/chosen": beta * (chosen_B - batch.reference_chosen_B).sum() / count,
            "reward/rejected": beta * (rejected_B - batch.reference_rejected_B).sum() / count,
            "train/logprob_chosen": chosen_B.sum() / count,
            "train/logprob_rejected": rejected_B.sum() / count,
        }

    return loss_fn


def judge_pairs(
    model: PreTrainedModel, pairs: Sequence[Scored], *, beta: float, micro_batch_tokens: int
) -> dict[str, float]:
    """Implied rewards of pairs that were not trained on; nothing where there are none."""
    if not pairs:
        return {}
    loss_fn = make_dpo_loss(pairs, beta=beta, sft_weight=0.0)
    totals: dict[str, float] = {}
    for batch in make_pair_batches(pairs, tokens=micro_batch_tokens, device=model.device):
        with torch.no_grad():
            loss, metrics = loss_fn(model, batch)
        for name, value in {"train/loss": loss, **metrics}.items():
            totals[name] = totals.get(name, 0.0) + float(value)
    return {f"heldout_{name.split('/')[1]}": value for name, value in totals.items()}
