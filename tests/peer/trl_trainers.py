"""TRL's trainers without their set-up: its own advantages and losses, on samples, rewards and a table of logits.

What is replaced is what surrounds them: generation, reward functions, the forward pass, and communication between
processes.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from trl import GRPOTrainer, RLOOTrainer

from tests.loops.tabular import Response, Table

PAD = 0


def one_process() -> SimpleNamespace:
    PartialState(cpu=True)
    return SimpleNamespace(
        num_processes=1, process_index=0, device=torch.device("cpu"), is_main_process=True,
        gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x,
    )  # fmt: skip


class PeerTable(Table):
    """What TRL asks of a model besides."""

    is_gradient_checkpointing = False


class Samples:
    """Mixed into a trainer of TRL: groups of sampled responses to one prompt, with their rewards.

    `models` are the one that starts the update, and the reference.
    """

    def __init__(
        self,
        models: tuple[PeerTable, PeerTable],
        prompt: int,
        responses: list[Response],
        sampled: list[list[float]] | None,
        rewards: list[float],
        *,
        group: int,
        **settings: Any,
    ) -> None:
        self.model, self.ref_model = models
        self._prompt, self._responses, self._sampled, self._rewards = prompt, responses, sampled, rewards
        self.accelerator = one_process()
        self.num_generations = group
        self.reward_func_names, self.reward_weights = ["reward"], torch.ones(1)
        self._metrics = {"train": defaultdict(list)}
        self._logs = defaultdict(list, rewards=defaultdict(list), extra=defaultdict(list))
        self._pending_extra_logs, self._pending_metrics = {}, {}
        self._tokenizer, self.pad_to_multiple_of = SimpleNamespace(pad_token_id=PAD), None
        self.environment_factories = self.environments = self.tools = None
        self.mask_truncated_completions = self.aux_loss_enabled = self._entropy_bonus_enabled = False
        # A second pass over the samples: the log-probabilities before the update are then computed.
        self.num_iterations, self.current_gradient_accumulation_steps = 2, 1
        self.args = SimpleNamespace(
            per_device_train_batch_size=len(responses), gradient_checkpointing_kwargs=None,
            steps_per_generation=1, gradient_accumulation_steps=1,
            delta=settings.pop("delta", None), use_bias_correction_kl=settings.pop("use_bias_correction_kl", False),
        )  # fmt: skip
        for name, value in settings.items():
            setattr(self, name, value)

    def _calculate_rewards(self, *unused: Any) -> Tensor:
        return torch.tensor(self._rewards)[:, None]

    def _get_per_token_logps_and_entropies(
        self, model: PeerTable, input_ids: Tensor, mask: Tensor, logits_to_keep: int, *unused: Any, **more: Any
    ) -> tuple[Tensor, Tensor, None]:
        logprobs_BTA = torch.log_softmax(model.logits_VA[input_ids[:, :-1]], -1)[:, -logits_to_keep:]
        chosen_BT = logprobs_BTA.gather(-1, input_ids[:, -logits_to_keep:, None])[..., 0]
        return chosen_BT, -(logprobs_BTA.exp() * logprobs_BTA).sum(-1), None

    def loss(self, updated: PeerTable) -> Tensor:
        """The loss at `updated`, of samples that were taken and scored under the model given at the start."""
        inputs = self._generate_and_score_completions([{"prompt": "?"}] * len(self._responses))
        return self._compute_loss(updated, inputs)


class Grpo(Samples, GRPOTrainer):
    def _generate(self, prompts: list[str]) -> tuple[Any, ...]:
        asked = [[self._prompt]] * len(prompts)
        return asked, [list(r) for r in self._responses], None, prompts, self._sampled, {}, None, None


class Rloo(Samples, RLOOTrainer):
    def _generate(self, prompts: list[str]) -> tuple[Any, ...]:
        return [[self._prompt]] * len(prompts), [list(r) for r in self._responses], prompts


GRPO_SETTINGS: dict[str, Any] = {
    "loss_type": "grpo", "importance_sampling_level": "token", "beta": 0.0, "epsilon_low": 0.2, "epsilon_high": 0.2,
    "scale_rewards": "group", "multi_objective_aggregation": "sum_then_normalize", "max_completion_length": 16,
    "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None,
    "use_vllm": False, "vllm_importance_sampling_correction": False, "vllm_importance_sampling_mode": "sequence_mask",
    "vllm_importance_sampling_clip_min": None, "vllm_importance_sampling_clip_max": 3.0,
}  # fmt: skip
RLOO_SETTINGS: dict[str, Any] = {
    "beta": 0.0, "epsilon_low": 0.2, "epsilon_high": 0.2, "normalize_advantages": False, "reward_clip_range": None,
}  # fmt: skip
