"""What each lever is worth: the same work with it and without it, in turns. `python -m benchmarks.levers JSON`.

A lever's prediction is the ratio of the operations that are executed, padding included. Where it saves no operations
but passes over memory or calls, there is none.

Shapes: B rows, T tokens, M wanted tokens, C width.
"""

from __future__ import annotations

import copy
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.arithmetic import BACKWARD, Shape, executed_operations
from benchmarks.lever import Lever, changed, compared, in_turns, is_wanted, under
from benchmarks.levers_rollouts import RolloutLevers
from benchmarks.profile import heap_in_use, seconds_by_kind
from benchmarks.rates import fastest
from benchmarks.settings import load_settings
from benchmarks.world import Group, make_groups, plain_adamw, profile_params, shape_of
from posttrain.engine import attention_products, lm_head, packing
from posttrain.engine.attention import packed_hidden
from posttrain.engine.gated import keep_less
from posttrain.engine.packing import Packed, Response, pack, plan
from posttrain.engine.policy import Policy, frozen_copy, head_logits, load_policy, over_vocabulary, predicted_logprobs
from posttrain.engine.rms_norm import fuse_norms
from posttrain.engine.shelf import Shelved
from posttrain.engine.trainer import Trainer
from posttrain.loops.scoring import score

TOKENS = 4096
"""Of a micro-batch."""
ROWS = 32
"""Of a padded micro-batch."""
BOTH_WAYS = 1 + BACKWARD
STEP_SECONDS = 5.0
"""For which a step is repeated where it alone is timed."""


def main() -> None:
    order = json.loads(sys.argv[1])
    settings = load_settings(Path(order["settings"]))
    shape, token_ids = shape_of(Path(order["folder"]))
    size = settings.models[order["model"]].cases["grpo_update"]
    policy = load_policy(Path(order["folder"]), precision=order["precision"])
    groups = make_groups(size, token_ids, seed=settings.seed)
    bench = Levers(policy, shape, groups)
    if order.get("step_only"):
        print(json.dumps({"seconds": fastest(bench.step, seconds=STEP_SECONDS)}))
        return
    rows = []
    makers = [*bench.named(), *RolloutLevers(policy, shape, groups).named()]
    for name, make in makers:
        if not is_wanted(name, order["only"]):
            continue
        lever = make()
        said: dict[str, Any] = {"name": name, "instead": lever.instead, "predicted": lever.predicted}
        said |= {"own_cost": lever.own_cost, "kept": lever.kept}
        rows.append(said | compared(*in_turns(lever, pairs=settings.pairs), settings=settings))
    print(json.dumps({"levers": rows, "profile": seconds_by_kind(bench.step)}))


class Levers:
    """Those of training, on the groups of the case `grpo_update`."""

    def __init__(self, policy: Policy, shape: Shape, groups: Sequence[Group]) -> None:
        self._policy, self._shape, self._groups = policy, shape, groups
        self._plain_norms, self._plain_gated = copy.deepcopy(policy.model), copy.deepcopy(policy.model)
        for model in (policy.model, self._plain_norms):
            keep_less(model)
        for model in (policy.model, self._plain_gated):
            fuse_norms(model)
        together = [(group.prompt_ids, response) for group in groups for response in group.responses]
        # Neighbours with other prompts: nothing is shared.
        apart = [(group.prompt_ids, group.responses[i]) for i in range(len(groups[0].responses)) for group in groups]
        self._responses = together
        self._shared = micro_batches(together)
        self._apart = cut(apart)

    def named(self) -> Iterator[tuple[str, Callable[[], Lever]]]:
        """Name of each, and what makes it: some take long to make."""
        yield "no padding but in attention", self.no_padding
        yield "a prompt once for all its responses, packed", self.one_prompt
        yield "a prompt once for chosen and rejected, packed", self.one_prompt_of_pair
        yield "attention among rows of like lengths", self.like_lengths
        yield "LM head only where there is a loss", self.head_where_needed
        if self._shape.vocabulary >= lm_head.LARGE:
            yield "LM head in parts, its gradient in their place", self.head_in_parts
        yield "norms with a gradient of few passes", self.fused_norms
        if self._policy.model.dtype == torch.bfloat16:
            yield "attention as matrix products", self.attention_as_products
            yield "bf16 with fp32 master weights (a whole update)", self.in_bf16
            yield "master weights without ZeRO (a whole update)", self.own_masters
        yield "feed-forward parts compute activation and product again", self.lean_gates
        if shutil.which("g++"):
            yield "torch.compile of the feed-forward parts (not used)", self.compiled
        yield "fused AdamW (its step alone)", self.fused_optimizer
        yield "reference in memory while it is read with (its reading alone)", self.shelved_reference
        yield "no pass of its own for old log-probabilities on-policy", self.no_old_pass
        yield "groups without a signal not trained on (half of them)", self.no_idle_groups

    def no_padding(self) -> Lever:
        ordered = sorted(self._responses, key=lambda response: -len(response[0]) - len(response[1]))
        padded = [ordered[start : start + ROWS] for start in range(0, len(ordered), ROWS)]
        return Lever(
            f"rows padded to the longest of {ROWS} of like lengths",
            lambda: self._train(self._apart),
            lambda: self._train_padded(padded),
            sum(self._padded_operations(rows) for rows in padded) / self._operations(self._apart),
        )

    def one_prompt(self) -> Lever:
        return Lever(
            "packed, with its prompt before every response",
            self.step,
            lambda: self._train(self._apart),
            self._operations(self._apart) / self._operations(self._shared),
        )

    def one_prompt_of_pair(self) -> Lever:
        pairs = pairs_of(self._groups)
        together = micro_batches([response for pair in pairs for response in pair])
        # All chosen before all rejected, as peers have it: no neighbours of one prompt.
        apart = cut([*(chosen for chosen, _ in pairs), *(rejected for _, rejected in pairs)])
        return Lever(
            "packed, with its prompt before either",
            lambda: self._train(together),
            lambda: self._train(apart),
            self._operations(apart) / self._operations(together),
        )

    def like_lengths(self) -> Lever:
        with changed(packing, "LIKE", 0.0):
            operations = self._operations(self._shared)
        return Lever(
            "attention among all rows of a micro-batch, padded to the longest",
            self.step,
            under(packing, "LIKE", 0.0, self.step),
            operations / self._operations(self._shared),
        )

    def head_where_needed(self) -> Lever:
        model = self._policy.model

        def read(hidden: Tensor, targets: Tensor) -> tuple[Tensor]:
            return (-torch.nn.functional.cross_entropy(head_logits(model, hidden), targets, reduction="none"),)

        def off() -> None:
            for packed in map(pack, self._shared):
                hidden_NC = packed_hidden(model.get_decoder(), packed)
                (logprobs_N,) = over_vocabulary(model, read, hidden_NC, packed.ids_N.roll(-1))
                logprobs_N[packed.before_M].sum().backward()
            model.zero_grad()

        return Lever(
            "LM head on every token",
            self.step,
            off,
            self._operations(self._shared, everywhere=True) / self._operations(self._shared),
        )

    def head_in_parts(self) -> Lever:
        off = under(lm_head, "LARGE", float("inf"), self.step)
        return Lever("in parts, with autograd's gradient", self.step, off, None)

    def fused_norms(self) -> Lever:
        return Lever(
            "norms as the model writes them",
            self.step,
            lambda: self._train(self._shared, self._plain_norms),
            None,
            kept=(self._kept(self._policy.model), self._kept(self._plain_norms)),
        )

    def attention_as_products(self) -> Lever:
        off = under(attention_products, "LONGEST", 0, self.step)
        return Lever("torch's fused kernel", self.step, off, None)

    def in_bf16(self) -> Lever:
        return Lever("fp32", self._updates("bf16"), self._updates("fp32"), None)

    def own_masters(self) -> Lever:
        return Lever("ZeRO 2, in one process", self._updates("bf16"), self._updates("bf16", zero_stage=2), None)

    def lean_gates(self) -> Lever:
        return Lever(
            "both are kept for the backward pass",
            self.step,
            lambda: self._train(self._shared, self._plain_gated),
            None,
            kept=(self._kept(self._policy.model), self._kept(self._plain_gated)),
        )

    def compiled(self) -> Lever:
        compiled = copy.deepcopy(self._plain_gated)
        for layer in compiled.get_decoder().layers:
            layer.mlp = torch.compile(layer.mlp, dynamic=True)

        def on() -> None:
            self._train(self._shared, compiled)

        started = time.perf_counter()
        on()
        return Lever(
            "as transformers runs them",
            on,
            self.step,
            None,
            time.perf_counter() - started,
        )

    def fused_optimizer(self) -> Lever:
        parameters = [torch.nn.Parameter(p.detach().clone()) for p in self._policy.model.parameters()]
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        fused, plain = (torch.optim.AdamW(parameters, lr=1e-6, fused=fused, foreach=False) for fused in (True, False))
        return Lever("AdamW, tensor by tensor", fused.step, plain.step, None)

    def shelved_reference(self) -> Lever:
        """It reads one response of each group."""
        watched = self._responses[:: len(self._groups[0].responses)]
        at_start = heap_in_use()
        shelved = Shelved(frozen_copy(self._policy.model))
        kept = heap_in_use() - at_start
        resident = frozen_copy(self._policy.model)

        def read(model: PreTrainedModel) -> None:
            score(model, watched, micro_batch_tokens=TOKENS, temperature=1.0)

        def on() -> None:
            with shelved.reading() as reference:
                read(reference)

        held = heap_in_use() - at_start - kept
        return Lever("in memory all the time", on, lambda: read(resident), None, kept=(max(kept, 0), held))

    def no_old_pass(self) -> Lever:
        def off() -> None:
            score(self._policy.model, self._responses, micro_batch_tokens=TOKENS, temperature=1.0)
            self._train(self._shared)

        return Lever(
            "a forward pass before the step",
            self.step,
            off,
            (BOTH_WAYS + 1) / BOTH_WAYS,
        )

    def no_idle_groups(self) -> Lever:
        size = len(self._groups[0].responses)
        half = micro_batches(self._responses[: size * (len(self._groups) // 2)])
        return Lever(
            "all groups trained on",
            lambda: self._train(half),
            self.step,
            self._operations(self._shared) / self._operations(half),
        )

    def step(self) -> None:
        """Both passes of an update on given responses, with every lever."""
        self._train(self._shared)

    # What they are made of.

    def _train(self, batches: Sequence[Sequence[Response]], model: PreTrainedModel | None = None) -> None:
        """Forward and backward passes of a policy gradient with weights of 1."""
        trained = self._policy.model if model is None else model
        for packed in map(pack, batches):
            predicted_logprobs(trained, packed, temperature=1.0).sum().backward()
        trained.zero_grad()

    def _updates(self, precision: str, *, zero_stage: int = 0) -> Callable[[], object]:
        """Both passes and the optimizer's step, on a copy of the model."""
        engine = profile_params("tiny").engine.model_copy(update={"precision": precision, "zero_stage": zero_stage})
        optimizer = plain_adamw(lr=1e-6)
        trainer = Trainer(copy.deepcopy(self._policy.model), optimizer=optimizer, total_steps=1, engine=engine, seed=0)
        batches = [pack(responses) for responses in self._shared]

        def loss(model: Any, packed: Packed) -> tuple[Tensor, dict[str, Tensor]]:
            return predicted_logprobs(model, packed, temperature=1.0).mean(), {}

        return lambda: trainer.step(batches, loss)

    def _kept(self, model: PreTrainedModel) -> int:
        """Bytes that the forward pass of the first micro-batch leaves for the backward pass."""
        packed = pack(self._shared[0])
        predicted_logprobs(model, packed, temperature=1.0)  # what a first call allocates for good
        before = heap_in_use()
        logprobs_M = predicted_logprobs(model, packed, temperature=1.0)
        kept = heap_in_use() - before
        assert logprobs_M.requires_grad
        return kept

    def _train_padded(self, batches: Sequence[Sequence[Response]]) -> None:
        for rows in batches:
            width = len(rows[0][0]) + len(rows[0][1])
            whole = [[*prompt, *own] for prompt, own in rows]
            ids_BT = torch.tensor([ids + [0] * (width - len(ids)) for ids in whole])
            places = [(b, t) for b, (prompt, _) in enumerate(rows) for t in range(len(prompt), len(whole[b]))]
            row_M, column_M = torch.tensor(places).unbind(1)
            hidden_BTC = self._policy.model.get_decoder()(input_ids=ids_BT, use_cache=False).last_hidden_state
            logits_MV = head_logits(self._policy.model, hidden_BTC[row_M, column_M - 1])
            torch.nn.functional.cross_entropy(logits_MV, ids_BT[row_M, column_M], reduction="sum").backward()
        self._policy.model.zero_grad()

    def _padded_operations(self, rows: Sequence[Response]) -> float:
        width = len(rows[0][0]) + len(rows[0][1])
        return executed_operations(
            self._shape,
            tokens=len(rows) * width,
            pairs=len(rows) * width * width,
            scored=sum(len(own) for _, own in rows),
        )

    def _operations(self, batches: Sequence[Sequence[Response]], *, everywhere: bool = False) -> float:
        total = 0.0
        for packed in map(pack, batches):
            tokens = len(packed.ids_N)
            prompts = (0 if b.prompt_PS is None else b.prompt_PS.shape[1] for b in packed.layout.buckets)
            pairs = sum(b.rows * b.width * (b.width + s) for b, s in zip(packed.layout.buckets, prompts, strict=True))
            total += executed_operations(
                self._shape, tokens=tokens, pairs=pairs, scored=tokens if everywhere else len(packed.wanted_M)
            )
        return total


def micro_batches(responses: Sequence[Response]) -> list[list[Response]]:
    return [[responses[i] for i in group] for group in plan([[response] for response in responses], tokens=TOKENS)]


def pairs_of(groups: Sequence[Group]) -> list[tuple[Response, Response]]:
    """Neighbours in a group as chosen and rejected; each pair has a prompt of its own: the group's, turned."""
    pairs = []
    for group in groups:
        for first in range(0, len(group.responses) - 1, 2):
            prompt = (*group.prompt_ids[first:], *group.prompt_ids[:first])
            pairs.append(((prompt, group.responses[first]), (prompt, group.responses[first + 1])))
    return pairs


def cut(responses: Sequence[Response]) -> list[list[Response]]:
    """Micro-batches in the order given, with a prompt for each response."""
    parts: list[list[Response]] = []
    room = 0
    for prompt, own in responses:
        tokens = len(prompt) + len(own)
        if tokens > room:
            parts.append([])
            room = TOKENS
        parts[-1].append((prompt, own))
        room -= tokens
    return parts


if __name__ == "__main__":
    main()
