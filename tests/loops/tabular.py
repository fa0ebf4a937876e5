"""A policy small enough to enumerate: the next token's logits stand in a table, by the token before it.

Two letters and an end; a response is at most LIMIT tokens long, so there are seven. Everything about it is also
computed here a second way, in float64 and without the code under test.

Shapes: V tokens that may come before, A tokens that may be sampled.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from posttrain.loops.recipe import Recipe, choose_recipe
from posttrain.loops.rl_step import Counts, Trajectory, collate, make_loss
from posttrain.losses.reduce import Denominators
from posttrain.records import Rollout
from tests.loops.toy import rl_section

LETTERS, END, PROMPTS = (0, 1), 2, (3, 4)
LIMIT = 2
NO_KL = "none"

Response = tuple[int, ...]


class Table(nn.Module):
    """As much of a transformers model as the loss asks for."""

    def __init__(self, logits_VA: Tensor) -> None:
        super().__init__()
        self.logits_VA = nn.Parameter(logits_VA.clone())
        self.config = SimpleNamespace(num_hidden_layers=0, vocab_size=logits_VA.shape[1], _attn_implementation="sdpa")

    def get_decoder(self) -> Table:
        return self

    def get_output_embeddings(self) -> nn.Identity:
        return nn.Identity()

    def forward(self, input_ids: Tensor, **unused: object) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.logits_VA[input_ids])


def random_table(seed: int, *, tokens: int = 5, actions: int = 3) -> Tensor:
    return torch.randn(tokens, actions, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def responses() -> list[Response]:
    """Those that end, and those cut off."""
    lengths = range(LIMIT + 1)
    ended = [(*word, END) for n in lengths[:-1] for word in itertools.product(LETTERS, repeat=n)]
    return ended + list(itertools.product(LETTERS, repeat=LIMIT))


def token_logprobs(logits_VA: Tensor, prompt: int, response: Response) -> Tensor:
    """(response tokens,), differentiable."""
    before = [prompt, *response[:-1]]
    return torch.log_softmax(logits_VA, -1)[before, list(response)]


def score_of(logits_VA: Tensor, prompt: int, response: Response) -> Tensor:
    """Gradient of log pi(response)."""
    point_VA = logits_VA.detach().requires_grad_()
    return torch.autograd.grad(token_logprobs(point_VA, prompt, response).sum(), point_VA)[0]


def recipe_of(name: str, *, group_size: int, **changes: object) -> Recipe:
    """The recipe of an objective file, with changes on some axes."""
    objective = rl_section(name).objective
    changed = type(objective).model_validate(objective.model_dump() | changes, strict=False)
    return choose_recipe(changed, group_size=group_size)


def trajectory(
    prompt: int, response: Response, advantage: float, *, old: Tensor | None = None, reference: Tensor | None = None
) -> Trajectory:
    rollout = Rollout("p", (prompt,), response, (0.0,) * len(response), "stop", (0,) * len(response))
    advantages_T = torch.full((len(response),), advantage, dtype=torch.float64)
    return Trajectory(rollout, advantages_T, None if old is None else old.float(), reference)


def loss_of(model: Table, recipe: Recipe, parts: list[list[Trajectory]], *, max_tokens: int) -> Tensor:
    """The loss of a batch, summed over its micro-batches `parts`."""
    lengths = [len(item.rollout.response_ids) for part in parts for item in part]
    counts = Counts(Denominators(len(lengths), sum(lengths), max_tokens), sum(lengths))
    loss_fn = make_loss(recipe, counts, temperature=1.0)
    return torch.stack([loss_fn(model, collate(part, torch.device("cpu")))[0] for part in parts]).sum()
