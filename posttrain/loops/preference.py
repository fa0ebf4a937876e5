"""Learning from pairs of responses, by any method of posttrain.loops.preference_methods.

The reference is the policy at the start; its log-probabilities are computed once and kept. Watch those of the chosen
responses: they may fall while the margin grows, which a weight on their likelihood prevents.

Shapes: B pairs, T response tokens at most.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain import config, config_align
from posttrain.config_align_rl import LearnedRl
from posttrain.config_fields import ConfigError
from posttrain.engine.checkpoint import latest_checkpoint, save_checkpoint
from posttrain.engine.distributed import gather_objects, rank, world_size
from posttrain.engine.packing import Packed, Response, pack, plan
from posttrain.engine.policy import Policy, predicted_logprobs
from posttrain.engine.trainer import Trainer
from posttrain.loops.clock import Clock
from posttrain.loops.ending import refuse_other_end
from posttrain.loops.pair_inputs import pair_ids
from posttrain.loops.pairs import check_pairs
from posttrain.loops.preference_methods import METHODS, Method, PairTerms
from posttrain.loops.reference import reference_sums
from posttrain.loops.scoring import epoch_batches, response_length, score
from posttrain.losses.preference import kto_baseline
from posttrain.records import Pair

CHOSEN_FALL = 0.05
"""Nats per token by which a batch's chosen responses may become less likely than at the start without a warning."""

Responses = tuple[Response, Response]
"""Two responses to one prompt: chosen and rejected."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A pair in token ids, with the reference's log-probabilities (nats, summed over tokens)."""

    chosen: Response
    rejected: Response
    reference_chosen: float
    reference_rejected: float
    mismatched: tuple[Response, ...]
    """The prompt with two responses to another prompt; none where the method has no use for them."""
    reference_mismatched: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class PairBatch:
    responses: Packed
    """Of each pair the chosen one, then the rejected one."""
    reference_chosen_B: Tensor
    reference_rejected_B: Tensor


LossFn = Callable[[nn.Module, PairBatch], tuple[Tensor, dict[str, Tensor]]]


def run_preference(
    policy: Policy,
    pairs: Sequence[Pair],
    *,
    section: config.Align,
    engine: config.Engine,
    seed: int,
    log: Callable[[dict[str, float], int], None],
    note: Callable[[str], None],
    checkpoints: Path,
    save_every: int,
    source: str,
) -> dict[str, float]:
    """Train `policy` in place on the `train` pairs; returns what the `heldout` pairs say afterwards.

    `source` names the pairs in the DataError that a bad one raises before anything is trained: the file that they were
    read from, or what made them. Continues from the last checkpoint, with the result of a run that was never
    interrupted. Raises ConfigError for a method that does not learn from pairs.
    """
    numbers = section.method
    if isinstance(numbers, LearnedRl):
        raise ConfigError(f"align.method: got '{numbers.kind}', wanted one that learns from pairs: {sorted(METHODS)}")
    check_pairs(pairs, source)
    ids = {name: [pair_ids(policy.tokenizer, p) for p in pairs if p.split == name] for name in ("train", "heldout")}
    batches = epoch_batches(len(ids["train"]), size=section.batch_pairs, epochs=section.epochs, seed=seed)
    trainer = Trainer(policy.model, optimizer=section.optimizer, total_steps=len(batches), engine=engine, seed=seed)
    scored = scored_pairs(
        trainer.model,
        ids,
        mismatched=METHODS[numbers.kind].mismatched,
        seed=seed,
        file=checkpoints / "reference.json",
        micro_batch_tokens=engine.micro_batch_tokens,
        note=note,
    )
    if found := latest_checkpoint(checkpoints):
        trainer.load_state_dict(found[1]["trainer"])
    warned = False
    for step in range(trainer.steps_done, len(batches)):
        clock = Clock()
        batch = [scored["train"][i] for i in batches[step]]
        metrics = train_step(trainer, batch, numbers=numbers, micro_batch_tokens=engine.micro_batch_tokens)
        tokens = sum(response_length(pair.chosen) + response_length(pair.rejected) for pair in batch)
        log(metrics | clock.metrics(tokens=tokens), step + 1)
        if not warned and metrics["train/chosen_change"] < -CHOSEN_FALL:
            warned = True
            note(fall_warning(metrics["train/chosen_change"], step + 1))
        if (step + 1) % save_every == 0 and step + 1 < len(batches):
            save_checkpoint(checkpoints, step + 1, {"trainer": trainer.state_dict()})
    refuse_other_end(trainer.steps_done, len(batches))
    after = judge_pairs(trainer.model, scored["heldout"], numbers=numbers, micro_batch_tokens=engine.micro_batch_tokens)
    counts = {f"{name}_pairs": len(some) for name, some in scored.items()}
    return {"steps": len(batches), **counts, **after}


def fall_warning(change: float, step: int) -> str:
    """For the person watching: `change` in nats per token."""
    return (
        f"warning: at step {step} the chosen responses are {-change:.3f} nats per token less likely than at the start "
        f"of the round, more than {CHOSEN_FALL}; a larger sft_weight, a larger beta or a lower learning rate holds "
        "them up"
    )


def train_step(
    trainer: Trainer, pairs: Sequence[Scored], *, numbers: config_align.PairMethod, micro_batch_tokens: int
) -> dict[str, float]:
    """One optimizer step on the batch `pairs`, of which each rank takes its share; the metrics of the whole batch."""
    mine = pairs[rank() :: world_size()]
    baseline = batch_baseline(trainer.model, mine, kind=numbers.kind, micro_batch_tokens=micro_batch_tokens)
    parts = make_pair_batches(mine, tokens=micro_batch_tokens, device=trainer.model.device)
    loss_fn = make_preference_loss(pairs, numbers=numbers, sft_weight=numbers.sft_weight, baseline=baseline)
    stats = trainer.step(parts, loss_fn)
    measured = {"train/loss": stats.loss, "train/grad_norm": stats.grad_norm, "train/learning_rate": stats.lr}
    if METHODS[numbers.kind].mismatched:
        measured["train/baseline"] = float(baseline)
    return measured | stats.metrics


def scored_pairs(
    reference: PreTrainedModel,
    ids: Mapping[str, Sequence[Responses]],
    *,
    mismatched: bool,
    seed: int,
    file: Path,
    micro_batch_tokens: int,
    note: Callable[[str], None],
) -> dict[str, list[Scored]]:
    """The pairs of each split with the log-probabilities that `reference` gives them."""
    responses = {name: [response for pair in some for response in pair] for name, some in ids.items()}
    others = {
        f"{name}_mismatched": mismatched_responses(some, ids["train"], seed=seed) if mismatched else []
        for name, some in ids.items()
    }
    sums = reference_sums(reference, responses | others, file=file, micro_batch_tokens=micro_batch_tokens, note=note)
    return {
        name: [
            Scored(
                chosen,
                rejected,
                sums[name][2 * i],
                sums[name][2 * i + 1],
                tuple(others[f"{name}_mismatched"][2 * i : 2 * i + 2]),
                tuple(sums[f"{name}_mismatched"][2 * i : 2 * i + 2]),
            )
            for i, (chosen, rejected) in enumerate(some)
        ]
        for name, some in ids.items()
    }


def mismatched_responses(pairs: Sequence[Responses], others: Sequence[Responses], *, seed: int) -> list[Response]:
    """Two per pair: its prompt with the responses of a pair of `others` that answers another prompt, drawn at random.

    `others` must hold two prompts.
    """
    rng = random.Random(seed)
    drawn: list[Response] = []
    for (prompt, _), _ in pairs:
        other = rng.choice(others)
        while other[0][0] == prompt:
            other = rng.choice(others)
        drawn += [(prompt, response) for _, response in other]
    return drawn


def batch_baseline(model: PreTrainedModel, pairs: Sequence[Scored], *, kind: str, micro_batch_tokens: int) -> Tensor:
    """z0 of kto under `model` as it is, for the batch of which `pairs` is this rank's share; 0 for other methods."""
    if not METHODS[kind].mismatched:
        return torch.zeros((), device=model.device)
    responses = [response for pair in pairs for response in pair.mismatched]
    reference = [value for pair in pairs for value in pair.reference_mismatched]
    policy = score(model, responses, micro_batch_tokens=micro_batch_tokens, temperature=1.0)
    mine = [float(row.sum()) - value for row, value in zip(policy, reference, strict=True)]
    return kto_baseline(torch.tensor([x for part in gather_objects(mine) for x in part], device=model.device))


def make_pair_batches(pairs: Sequence[Scored], *, tokens: int, device: torch.device) -> list[PairBatch]:
    """Micro-batches, each of at most `tokens` tokens; a prompt counts once for both its responses."""
    groups = plan([(pair.chosen, pair.rejected) for pair in pairs], tokens=tokens)
    return [collate_pairs([pairs[i] for i in group], device) for group in groups]


def collate_pairs(pairs: Sequence[Scored], device: torch.device) -> PairBatch:
    """Tensors of a micro-batch."""
    return PairBatch(
        pack([response for pair in pairs for response in (pair.chosen, pair.rejected)]).to(device),
        torch.tensor([pair.reference_chosen for pair in pairs], device=device),
        torch.tensor([pair.reference_rejected for pair in pairs], device=device),
    )


def make_preference_loss(
    pairs: Sequence[Scored], *, numbers: config_align.PairMethod, sft_weight: float, baseline: Tensor
) -> LossFn:
    """Loss and metrics of a micro-batch, as additive parts of those of the whole batch `pairs`."""
    method, beta = METHODS[numbers.kind], numbers.beta
    count = len(pairs)
    chosen_tokens = sum(len(pair.chosen[1]) for pair in pairs)

    def loss_fn(model: nn.Module, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
        logprobs_BT = batch.responses.spread(predicted_logprobs(model, batch.responses, temperature=1.0))
        chosen_B, rejected_B = logprobs_BT.sum(1).view(-1, 2).unbind(1)
        terms = pair_terms(batch, chosen_B, rejected_B, baseline, method)
        margin_B = terms.margin_B
        loss = method.loss(terms, numbers).sum() / count
        likelihood = -chosen_B.sum() / chosen_tokens
        return loss + sft_weight * likelihood, {
            "reward/margin": beta * margin_B.sum() / count,
            "reward/pair_accuracy": (margin_B > 0).sum() / count,
            "reward/chosen": beta * (terms.chosen_B - terms.reference_chosen_B).sum() / count,
            "reward/rejected": beta * (terms.rejected_B - terms.reference_rejected_B).sum() / count,
            "train/logprob_chosen": chosen_B.sum() / count,
            "train/logprob_rejected": rejected_B.sum() / count,
            "train/chosen_change": (chosen_B - batch.reference_chosen_B).sum() / chosen_tokens,
        }

    return loss_fn


def pair_terms(batch: PairBatch, chosen_B: Tensor, rejected_B: Tensor, baseline: Tensor, method: Method) -> PairTerms:
    """What `method` sees of a micro-batch, from the policy's sums over tokens."""
    values = [chosen_B, rejected_B, batch.reference_chosen_B, batch.reference_rejected_B]
    if not method.reference:
        values[2:] = [torch.zeros_like(value) for value in values[2:]]
    if method.per_token:
        lengths_B = batch.responses.mask_BT.sum(1).view(-1, 2).unbind(1)
        values = [value / length_B for value, length_B in zip(values, lengths_B * 2, strict=True)]
    policy_chosen_B, policy_rejected_B, reference_chosen_B, reference_rejected_B = values
    return PairTerms(policy_chosen_B, policy_rejected_B, reference_chosen_B, reference_rejected_B, baseline)


def judge_pairs(
    model: PreTrainedModel, pairs: Sequence[Scored], *, numbers: config_align.PairMethod, micro_batch_tokens: int
) -> dict[str, float]:
    """Loss, implied rewards and log-probabilities of pairs not trained on, as `heldout_*`; nothing without pairs."""
    if not pairs:
        return {}
    baseline = batch_baseline(model, pairs, kind=numbers.kind, micro_batch_tokens=micro_batch_tokens)
    loss_fn = make_preference_loss(pairs, numbers=numbers, sft_weight=0.0, baseline=baseline)
    totals: dict[str, float] = {}
    for batch in make_pair_batches(pairs, tokens=micro_batch_tokens, device=model.device):
        with torch.no_grad():
            loss, metrics = loss_fn(model, batch)
        for name, value in {"train/loss": loss, **metrics}.items():
            totals[name] = totals.get(name, 0.0) + float(value)
    return {f"heldout_{name.split('/')[1]}": value for name, value in totals.items()}
