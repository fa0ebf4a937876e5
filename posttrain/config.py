"""params.yaml -> frozen models. Strict: an unknown or missing key, a wrong type or a number out of range is an error.

There are no defaults in code: every number that changes a result stands in params.yaml, where DVC sees it. What does
not change a result (process count, addresses, threads) is in system.yaml or the environment: see posttrain.system.
Imports neither torch nor transformers, so that validation takes well under a second.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from posttrain.config_align import Align
from posttrain.config_fields import (
    ConfigError,
    Count,
    Fraction,
    Generation,
    Optimizer,
    Positive,
    Scalar,
    Section,
    optimizers_of,
)
from posttrain.config_preference import FileJudge, Prefer, RewardModel
from posttrain.config_rl import Rl
from posttrain.records import Verifier

Parsed = TypeVar("Parsed", bound=Section)


class Engine(Section):
    """What runs the models."""

    precision: Literal["fp32", "bf16"]
    """Training: fp32, or bf16 with fp32 master weights. Saved weights have the same type."""
    zero_stage: Annotated[int, Field(ge=0, le=3)]
    micro_batch_tokens: Count
    """Tokens per forward pass of whatever trains or scores, a prompt counted once for its responses; a longer sequence
    has a pass of its own. Memory and speed: no effect on the result beyond rounding."""
    rollout: Literal["transformers", "vllm"]
    rollout_batch: Count
    """Sequences generated at once in process; vLLM batches by itself."""
    canary_tolerance: Positive
    """Largest allowed difference (nats) between the sampler's and the trainer's log-probabilities after a sync."""


class GymFamily(Section):
    """One reasoning-gym data set of the world."""

    name: str
    weight: Positive
    options: dict[str, Scalar | tuple[Scalar, ...]]
    """Passed to reasoning_gym.create_dataset: the difficulty."""


class GymSource(Section):
    kind: Literal["gym"]
    families: Annotated[tuple[GymFamily, ...], Field(min_length=1)]
    problems: Count
    """Rows drawn before curation."""


class Fields(Section):
    """Which fields of a user's rows hold what."""

    prompt: str
    answer: str
    id: str | None
    domain: str | None
    solution: str | None
    """Field with a worked solution: becomes the thinking of a supervised trace."""
    verifier: str | None
    """Field that names the row's verifier, where it has one; otherwise the source's."""
    metadata: str | None
    """Field with an object of what the verifier needs beyond the answer: tests, constraints, choices."""


class JsonlSource(Section):
    kind: Literal["jsonl"]
    path: str
    fields: Fields
    verifier: Verifier
    """Of the rows that name none."""


class HubSource(Section):
    kind: Literal["hub"]
    dataset: str
    subset: str | None
    split: str
    fields: Fields
    verifier: Verifier
    """Of the rows that name none."""


Source = Annotated[GymSource | JsonlSource | HubSource, Field(discriminator="kind")]


class Habits(Section):
    """Shares of the ways in which the generator writes a worked solution; they sum to 1."""

    careful: Fraction
    """One right step after another."""
    hasty: Fraction
    """Several operations per step; right in traces, and slipping with probability `slip` in the base corpus."""
    direct: Fraction
    """The answer without any working."""
    guess: Fraction
    """A plausible wrong answer."""
    slip: Fraction
    """Probability that a hasty step is wrong."""
    check: Fraction
    """Share of worked solutions that are checked a second time."""
    mistake: Fraction
    """Share of the checked solutions whose first result is wrong, so that the check finds something."""
    detour: Fraction
    """Share of worked solutions with a start that leads nowhere."""
    remarks: Fraction
    """Share of worked solutions that end with sentences that add nothing: what a length reward can cut for free."""
    second_script: Fraction
    """Share of worked solutions with words of the second script mixed in."""

    @model_validator(mode="after")
    def shares_sum_to_one(self) -> Habits:
        total = self.careful + self.hasty + self.direct + self.guess
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"careful + hasty + direct + guess must be 1, got {total:g}")
        return self


class MicroModel(Section):
    """A Qwen3-architecture model built from nothing."""

    hidden_size: Count
    intermediate_size: Count
    layers: Count
    heads: Count
    kv_heads: Count
    head_dim: Count
    max_position_embeddings: Count


class ScratchBase(Section):
    """Pre-training on a generated corpus, for a world that needs no download."""

    kind: Literal["scratch"]
    vocab_size: Annotated[int, Field(ge=300)]
    model: MicroModel
    student: MicroModel
    """The small base that stage `distill` teaches; trained on the same corpus."""
    source: GymSource
    """Problems of the corpus; other draws than those of stage `curate`."""
    habits: Habits
    documents: Count
    drill_share: Fraction
    """Share of documents that are rows of single true operations."""
    steps: Count
    student_steps: Count
    batch_tokens: Count
    sequence_length: Count
    optimizer: Optimizer


class HubBase(Section):
    kind: Literal["hub"]
    model: str
    student: str
    trust_remote_code: bool


class PathBase(Section):
    kind: Literal["path"]
    model: str
    student: str


class PackageBase(Section):
    """A GGUF file shipped inside an installed Python package."""

    kind: Literal["package"]
    package: str
    file: str
    student_layers: Count
    """The student is the base with this many of its layers, evenly spaced."""


BaseModelSource = Annotated[ScratchBase | HubBase | PathBase | PackageBase, Field(discriminator="kind")]


class GuessFilter(Section):
    """Kimi k1.5's easy-to-hack filter: drop what is right in any of `samples` guesses without reasoning."""

    samples: Annotated[int, Field(ge=0)]
    temperature: Positive


class Curate(Section):
    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    heldout: Count
    """Problems kept apart for evaluation; the first ones of a seeded shuffle."""
    dedup_threshold: Fraction
    """Jaccard similarity of word shingles at and above which two prompts are near-duplicates."""
    dedup_permutations: Count
    shingle_words: Count
    ngram: Count
    """A training prompt that shares a run of this many words with a held-out prompt is dropped... """
    ngram_overlap: Fraction
    """... when at least this share of its n-grams is shared: templated prompts always share some."""
    guess: GuessFilter
    traces_per_problem: Count
    traces: Habits


class Sft(Section):
    optimizer: Optimizer
    epochs: Positive
    batch_tokens: Count
    """Tokens per optimizer step."""
    sequence_length: Count
    """Longest example, in tokens; longer ones are left out."""
    examples: Count
    """Long-CoT traces used: a cold start stays small."""


class Grade(Section):
    samples: Count
    generation: Generation
    min_pass_rate: Fraction
    max_pass_rate: Fraction
    problems: Count
    """Prompts graded at most."""


class Fuse(Section):
    optimizer: Optimizer
    epochs: Positive
    batch_tokens: Count
    sequence_length: Count
    problems: Count
    samples: Count
    select: Literal["all", "first", "shortest"]
    """Which of a problem's right samples become thoughts; `shortest` is shortest rejection sampling."""
    generation: Generation
    no_think_share: Annotated[float, Field(ge=0.0, lt=1.0)]
    """Share of training examples that answer without thinking."""


class Distill(Section):
    problems: Count
    samples: Count
    no_think_samples: Count
    """Direct answers asked of the teacher per problem; more than `samples`, because fewer of them are right."""
    generation: Generation
    no_think_share: Annotated[float, Field(ge=0.0, lt=1.0)]
    """Largest share of direct answers among the examples copied, and share of on-policy prompts that ask for one."""
    sft_optimizer: Optimizer
    sft_epochs: Positive
    batch_tokens: Count
    sequence_length: Count
    on_policy_optimizer: Optimizer
    on_policy_steps: Annotated[int, Field(ge=0)]
    prompts_per_step: Count
    kl: Literal["reverse", "forward"]
    look_problems: Count
    """Held-out problems on which the student is compared with itself before the on-policy phase, and by RL."""


class Evaluate(Section):
    samples: Annotated[int, Field(ge=2)]
    generation: Generation
    no_think_tokens: Count
    """Longest response in mode no_think: a thought that has moved into the answer is no answer without thinking."""
    pass_at: tuple[Count, ...]
    budgets: tuple[Annotated[int, Field(ge=0)], ...]
    """Thinking tokens after which thinking is stopped."""
    bootstrap: Count
    ece_bins: Count


class Floor(Section):
    """A gate: the flow stops after `stage` when `metric` (a dotted path into the stage's JSON) is below `at_least`."""

    stage: str
    metric: str
    at_least: float


class Probe(Section):
    """The quick look that a training stage takes at its own model, on the first held-out problems."""

    problems: Count
    samples: Count
    generation: Generation


class Report(Section):
    prompts: Count
    """Held-out prompts whose answers by all models are shown side by side."""


class Params(Section):
    """The whole of params.yaml."""

    profile: str
    seed: Annotated[int, Field(ge=0)]
    engine: Engine
    base: BaseModelSource
    curate: Curate
    sft: Sft
    grade: Grade
    grpo: Rl
    fuse: Fuse
    prefer: Prefer
    reward_model: RewardModel
    align: Align
    distill: Distill
    evaluate: Evaluate
    probe: Probe
    report: Report
    gates: tuple[Floor, ...]

    @model_validator(mode="after")
    def muon_has_whole_matrices(self) -> Params:
        if self.engine.zero_stage > 0:
            for name, optimizer in optimizers_of(self):
                if optimizer.kind == "muon":
                    raise ConfigError(
                        f"{name}.kind: got 'muon', wanted 'adamw': engine.zero_stage {self.engine.zero_stage} "
                        "partitions the matrices that Muon needs whole"
                    )
        return self

    @model_validator(mode="after")
    def fresh_pairs_have_a_judge(self) -> Params:
        if isinstance(self.prefer.judge, FileJudge) and self.align.rounds > 1:
            raise ConfigError(
                f"align.rounds: got {self.align.rounds}, wanted 1: with prefer.judge 'file' nobody judges fresh pairs"
            )
        return self


def load_params(path: Path = Path("params.yaml")) -> Params:
    """The validated parameters; raises ConfigError with every wrong field named."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; `posttrain use tiny` writes one")
    return parse_params(read_mapping(path), str(path))


def read_mapping(path: Path) -> dict[str, Any]:
    """The sections of a YAML file, not validated yet."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: got {type(data).__name__}, wanted sections by name")
    return data


def parse_params(data: dict[str, Any], where: str) -> Params:
    """Validate a plain mapping; `where` opens each message."""
    return parse_section(Params, data, where)


def parse_section(kind: type[Parsed], data: dict[str, Any], where: str) -> Parsed:
    """Any section of its own file; raises ConfigError with every wrong field named."""
    try:
        # JSON mode: strict about types, yet lists may fill tuples.
        return kind.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(item, where) for item in error.errors())) from error


def _explain(item: Any, where: str) -> str:
    name = ".".join(str(part) for part in item["loc"])
    kind = item["type"]
    if kind == "missing":
        return f"{where}: {name}: missing; wanted: a value (for params.yaml, profiles/tiny.yaml has them all)"
    if kind == "extra_forbidden":
        return f"{where}: {name}: got {item['input']!r}; wanted: no such key (unknown name, perhaps a typing error)"
    if kind == "union_tag_invalid":
        return f"{where}: {name}: got {item['ctx']['tag']!r}; wanted: one of {item['ctx']['expected_tags']}"
    if kind == "value_error":  # raised by a section's own check, which says what it got
        return ": ".join(part for part in (where, name, str(item["ctx"]["error"])) if part)
    hint = ""
    if isinstance(item["input"], str) and kind in ("float_type", "int_type"):
        try:
            float(item["input"])
            hint = " (YAML reads numbers like 1e-3 as text: write 1.0e-3)"
        except ValueError:
            pass
    return f"{where}: {name}: got {item['input']!r}; wanted: {item['msg'].removeprefix('Input should be ')}{hint}"
