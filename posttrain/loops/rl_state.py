"""What an RL run changes and must find again after an interruption: networks, optimizers, reference, KL coefficient."""

from __future__ import annotations

from typing import Any

from posttrain import config
from posttrain.engine.policy import Policy, frozen_copy
from posttrain.engine.shelf import Shelved
from posttrain.engine.trainer import Trainer
from posttrain.loops.recipe import Recipe
from posttrain.loops.rl_value import start_value_network
from posttrain.rl.kl_control import adapted


class Learner:
    """The policy in training with all that belongs to it; saved and loaded as one."""

    def __init__(self, policy: Policy, recipe: Recipe, section: config.Rl, *, engine: config.Engine, seed: int) -> None:
        self._recipe = recipe
        self.micro_batch_tokens = engine.micro_batch_tokens
        self._samples = section.prompts_per_step * section.group_size
        self.kl_coefficient = recipe.kl_in_loss or recipe.kl_in_reward
        reference = frozen_copy(policy.model)
        network = None
        if recipe.value is not None:
            network = start_value_network(policy, recipe.value, precision=engine.precision, seed=seed)
        updates = section.epochs * section.minibatches
        policy_steps = section.steps - (recipe.value.warmup_steps if recipe.value else 0)
        self.trainer = Trainer(
            policy.model, optimizer=section.optimizer, total_steps=updates * policy_steps, engine=engine, seed=seed
        )
        self.reference = Shelved(reference.to(self.trainer.model.device))
        self.critic: Trainer | None = None
        """Trains the value network, where the objective has one."""
        if network is not None and recipe.value is not None:
            optimizer = section.optimizer.model_copy(update={"lr": recipe.value.lr_scale * section.optimizer.lr})
            self.critic = Trainer(
                network, optimizer=optimizer, total_steps=updates * section.steps, engine=engine, seed=seed
            )

    @property
    def recipe(self) -> Recipe:
        """The objective with the KL coefficient in force."""
        return self._recipe.with_kl(self.kl_coefficient)

    def trains_policy(self, step: int) -> bool:
        """False while the value network warms up."""
        return self._recipe.value is None or step >= self._recipe.value.warmup_steps

    def begin(self, step: int) -> None:
        """What an objective starts anew: the reference every so many steps, the optimizer at each."""
        every = self._recipe.reset_reference
        if every and step and step % every == 0:
            self.reference.replace(self.trainer.model.state_dict())
        if self._recipe.reset_optimizer:
            self.trainer.reset_optimizer()

    def adapt(self, kl: float) -> dict[str, float]:
        """The coefficient of this step as a metric; the next step's follows the KL (nats per response) of this one."""
        in_force = self.kl_coefficient
        if controller := self._recipe.kl_controller:
            self.kl_coefficient = adapted(
                in_force, kl, target=controller.target, horizon=controller.horizon, samples=self._samples
            )
        return {"kl/coefficient": in_force} if in_force else {}

    def state_dict(self) -> dict[str, Any]:
        """The reference is left out where it never changes."""
        weights = None
        if self._recipe.reset_reference:
            with self.reference.reading() as reference:
                weights = reference.state_dict()
        return {
            "trainer": self.trainer.state_dict(),
            "critic": self.critic.state_dict() if self.critic else None,
            "reference": weights,
            "kl_coefficient": self.kl_coefficient,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.critic:
            self.critic.load_state_dict(state["critic"])
        # After the value network's: both hold the state of the same generators, at the same moment.
        self.trainer.load_state_dict(state["trainer"])
        if state["reference"] is not None:
            self.reference.replace(state["reference"])
        self.kl_coefficient = state["kl_coefficient"]
