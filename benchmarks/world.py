"""The same weights and the same token ids for both sides."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from transformers import PreTrainedTokenizerFast

from benchmarks.arithmetic import Shape
from benchmarks.settings import Model, Precision, Size
from posttrain import config, config_align
from posttrain.chat.template import TURN_END
from posttrain.config import Params, parse_params
from posttrain.curation.tokenizer import train_tokenizer
from posttrain.engine.existing import load_existing
from posttrain.engine.policy import Policy, build_micro, count_parameters, load_policy, save_policy
from posttrain.errors import ModelError
from posttrain.profiles import compose
from posttrain.records import Pair

OBJECTIVE = "dr_grpo"
"""The one GRPO variant compared: both sides have it, and neither adds an epsilon to a deviation."""
BETA = 0.3
"""Of DPO on both sides."""
BF16_CANARY = 0.5
"""Nats by which sampler and trainer may differ in bf16, as in profile smollm2."""


@dataclass(frozen=True, slots=True)
class Group:
    prompt_ids: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]


def plain_adamw(*, lr: float) -> config.Optimizer:
    return config.Optimizer(
        kind="adamw",
        lr=lr,
        schedule="constant",
        warmup=0.0,
        final_lr_ratio=1.0,
        weight_decay=0.0,
        betas=(0.9, 0.95),
        grad_clip=1.0,
    )


@dataclass(frozen=True, slots=True)
class Work:
    """What one side has to do."""

    folder: Path
    """Of the policy, fp32."""
    params: Params
    size: Size
    groups: tuple[Group, ...]
    precision: str
    """fp32 or bf16; the peer also has `mixed`: fp32 weights under autocast to bf16."""
    peer_batch: int
    sequence_length: int
    lr: float
    steps: int
    """At most."""
    seed: int
    scratch: Path
    """An empty folder."""

    @property
    def optimizer(self) -> config.Optimizer:
        return plain_adamw(lr=self.lr)

    @property
    def preference(self) -> config_align.Dpo:
        """DPO alone: no likelihood term, which the peer has in another form."""
        return config_align.Dpo(kind="dpo", beta=BETA, sft_weight=0.0)

    def pairs(self) -> list[Pair]:
        """Of every group the first response over the second. The texts only tell the pairs apart: ids are trained."""
        return [
            Pair(
                id=f"{p}",
                problem_id=f"{p}",
                prompt=f"prompt {p}",
                chosen=f"one response{TURN_END}",
                rejected="another response",
                margin=1.0,
                judge="benchmark",
                prompt_ids=group.prompt_ids,
                chosen_ids=group.responses[0],
                rejected_ids=group.responses[1],
            )
            for p, group in enumerate(self.groups)
        ]


def profile_params(name: str) -> Params:
    """A profile with the objective compared."""
    return parse_params(yaml.safe_load(compose(name, OBJECTIVE)), f"profile {name}")


def make_groups(size: Size, token_ids: Sequence[int], *, seed: int) -> tuple[Group, ...]:
    """Prompts and responses of random tokens."""
    rng = random.Random(seed)
    shortest = max(1, round((1.0 - size.spread) * size.response_tokens))

    def draw(length: int) -> tuple[int, ...]:
        return tuple(rng.choice(token_ids) for _ in range(length))

    return tuple(
        Group(
            draw(size.prompt_tokens),
            tuple(draw(rng.randint(shortest, size.response_tokens)) for _ in range(size.group)),
        )
        for _ in range(size.prompts)
    )


def plain_tokens(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids that neither end nor pad anything."""
    return sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.added_tokens_decoder))


def even_share(token_ids: Sequence[int]) -> float:
    """The reward: share of even token ids. Differs between the samples of a group, whatever the weights."""
    return sum(token % 2 == 0 for token in token_ids) / max(1, len(token_ids))


def prepare_model(model: Model, params: Params, folder: Path, *, seed: int) -> Path:
    """Folder of the policy in fp32, made in `folder` where it is nowhere yet.

    Raises ModelError saying what would have to be installed.
    """
    if model.folder is not None and Path(model.folder).is_dir():
        return Path(model.folder)
    if not (folder / "config.json").is_file():
        save_policy(build_policy(params, seed=seed), folder)
    return folder


def source_of_weights(params: Params) -> str:
    """Where a model that `prepare_model` made has its weights from."""
    base = params.base
    if isinstance(base, config.ScratchBase):
        return f"random, in the architecture of profile {params.profile}"
    return f"base.kind {base.kind} of profile {params.profile}"


def build_policy(params: Params, *, seed: int) -> Policy:
    """The model that a profile begins with; one that the chain trains is random here.

    Raises ModelError saying what would have to be installed.
    """
    base = params.base
    if isinstance(base, config.ScratchBase):
        tokenizer = made_up_tokenizer(base.vocab_size)
        ends = {"eos_id": tokenizer.eos_token_id, "pad_id": tokenizer.pad_token_id}
        return Policy(build_micro(base.model, vocab_size=len(tokenizer), **ends, seed=seed), tokenizer)
    if isinstance(base, config.PackageBase) and importlib.util.find_spec("gguf") is None:
        raise ModelError(f"package 'gguf' is not installed; wanted: it and '{base.package}'")
    return load_existing(base, precision="fp32")[0]


def made_up_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A chat tokenizer of the wanted size, trained on words that do not exist."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 7))) for _ in range(4 * vocab_size)]
    return train_tokenizer([" ".join(words)] * 2, vocab_size=vocab_size)


def shape_of(folder: Path) -> tuple[Shape, list[int]]:
    """Shape of a policy, and the token ids that may be drawn."""
    policy = load_policy(folder, precision="fp32")
    model, head = policy.model.config, policy.model.get_output_embeddings().weight
    width = getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads
    shape = Shape(
        body=count_parameters(policy.model) - head.numel(),
        vocabulary=head.shape[0],
        hidden=head.shape[1],
        layers=model.num_hidden_layers,
        attention_width=model.num_attention_heads * width,
    )
    return shape, plain_tokens(policy.tokenizer)


def engine_of(params: Params, precision: Precision) -> config.Engine:
    """The profile's engine, sampling in process, in the precision wanted."""
    tolerance = max(params.engine.canary_tolerance, BF16_CANARY if precision == "bf16" else 0.0)
    wanted = {"precision": precision, "rollout": "transformers", "canary_tolerance": tolerance}
    return params.engine.model_copy(update=wanted)
