"""The same samples, rewards and logits into TRL's trainers and into ours: the same loss and gradient, to 1e-5.

Differences, set equal or allowed for here: TRL adds 1e-4 to a standard deviation (we 1e-6); its cispo bounds the weight
by epsilon_high itself (we by 1 + high, as the paper); it corrects for the sampler by default (our files do not);
its k3 has no upper limit; its RLOO has a clipped ratio per sequence where ours counts the samples as on-policy.
"""

from dataclasses import replace

import pytest
import torch

from posttrain.rl import advantages as ours
from tests.loops.tabular import Table, loss_of, random_table, recipe_of, token_logprobs, trajectory
from tests.peer.trl_trainers import GRPO_SETTINGS, RLOO_SETTINGS, Grpo, PeerTable, Rloo

PROMPT = 9
RESPONSES = [(1, 5, 2), (7, 0, 3, 3, 6, 2, 1), (4,), (0, 6, 5, 2, 2), (2, 2), (3, 1, 4, 1, 5, 7)]
REWARDS = [1.0, 0.0, 0.5, 0.0, 1.0, -0.5]
GROUP = 3
"""Two groups."""
MAX_TOKENS = 16
OLD, NOISE = (random_table(seed, tokens=12, actions=8) for seed in (0, 1))
REFERENCE = OLD - 0.5 * NOISE
"""Near enough that our limit on k3 is not reached: TRL has none."""
NEW = OLD + 0.25 * NOISE
"""Some ratios to the old policy lie outside every clip range, and some inside."""
SAMPLED = [(token_logprobs(OLD + 0.4 * NOISE.flip(0), PROMPT, r)).tolist() for r in RESPONSES]
"""Of a sampler that disagrees."""


@pytest.fixture(autouse=True)
def same_epsilon(monkeypatch):
    monkeypatch.setattr(ours, "STD_EPSILON", 1e-4)


def our_loss(name: str, *, on_policy: bool = False, **changes) -> tuple[float, torch.Tensor]:
    recipe = recipe_of(name, group_size=GROUP, **changes)
    old = [token_logprobs(OLD, PROMPT, r) for r in RESPONSES]
    reference = [token_logprobs(REFERENCE, PROMPT, r) for r in RESPONSES]
    rewards = torch.tensor(REWARDS, dtype=torch.float64).view(-1, GROUP)
    if recipe.kl_in_reward:
        gaps = [float((a - b).sum()) for a, b in zip(old, reference, strict=True)]
        rewards -= recipe.kl_in_reward * torch.tensor(gaps).view(-1, GROUP)
    valid = ~rewards.isnan()
    weights = ours.advantages(rewards.nan_to_num(), valid, baseline=recipe.baseline, scale=recipe.scale).flatten()
    items = [
        with_sampled(trajectory(PROMPT, r, float(weights[i]), old=old[i], reference=reference[i].float()), SAMPLED[i])
        for i, r in enumerate(RESPONSES)
    ]
    model = Table((OLD if on_policy else NEW).float())
    loss = loss_of(model, recipe, [items], max_tokens=MAX_TOKENS)
    loss.backward()
    return loss.item(), model.logits_VA.grad


def with_sampled(item, sampled):
    return replace(item, rollout=replace(item.rollout, logprobs=tuple(sampled)))


def their_loss(trainer, settings, *, on_policy: bool = False, **changes) -> tuple[float, torch.Tensor]:
    old, reference, model = (PeerTable(t.float()) for t in (OLD, REFERENCE, OLD if on_policy else NEW))
    sampled = SAMPLED if changes.get("use_vllm") else None
    stub = trainer((old, reference), PROMPT, RESPONSES, sampled, REWARDS, group=GROUP, **(settings | changes))
    loss = stub.loss(model)
    loss.backward()
    return loss.item(), model.logits_VA.grad


def assert_equal(found, expected) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-5, abs=1e-5)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-5)
    assert expected[1].abs().max() > 1e-3


KL = {"kind": "in_loss", "estimator": "k3", "coefficient": 0.1, "controller": "fixed", "reset_reference": 0}
METHODS = {
    "grpo": {"beta": 0.04},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "gspo": {"importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1 + 4.0},
}


@pytest.mark.parametrize("on_policy", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_objectives_as_their_files_say(name, on_policy):
    expected = their_loss(Grpo, GRPO_SETTINGS, on_policy=on_policy, **METHODS[name])
    assert_equal(our_loss(name, on_policy=on_policy), expected)


def test_rloo():
    """On-policy the same gradient, KL in the reward included; TRL's loss is -A where ours is -A log pi."""
    found, expected = our_loss("rloo", on_policy=True), their_loss(Rloo, RLOO_SETTINGS, on_policy=True, beta=0.05)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-5)
    assert expected[1].abs().max() > 1e-3
    # Leave-one-out advantages sum to 0 in each group.
    assert expected[0] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "theirs"),
    [
        ({"scale": "batch_std"}, {"scale_rewards": "batch"}),
        # Two-sided clipping is the dual clip: nothing changes for A > 0.
        ({"clip": {"kind": "dual", "low": 0.2, "high": 0.2, "bound": 1.3}}, {"delta": 1.3}),
        (
            {"kl": KL | {"estimator": "k3_corrected"}},
            {"beta": 0.1, "use_bias_correction_kl": True},
        ),
    ],
)
def test_single_axes(changes, theirs):
    kl = {"kl": "none"}
    assert_equal(our_loss("grpo", **(kl | changes)), their_loss(Grpo, GRPO_SETTINGS, **theirs))


@pytest.mark.parametrize(
    ("correction", "mode", "cap"),
    [
        ("sequence_mask", "sequence_mask", 3.0),
        ("sequence_mask", "sequence_mask", 1.2),
        ("truncated", "token_truncate", 1.2),
        ("masked", "token_mask", 1.2),
    ],
)
def test_corrections_for_the_sampler(correction, mode, cap):
    """In TRL part of what it calls vLLM importance sampling; a cap of 1.2 is reached by some tokens and sequences."""
    settings = {
        "use_vllm": True, "vllm_importance_sampling_correction": True, "vllm_importance_sampling_mode": mode,
        "vllm_importance_sampling_clip_max": cap,
        "vllm_importance_sampling_clip_min": 1 / cap if mode == "token_mask" else None,
    }  # fmt: skip
    expected = their_loss(Grpo, GRPO_SETTINGS, **(METHODS["dapo"] | settings))
    assert_equal(our_loss("dapo", correction={"kind": correction, "cap": cap}), expected)
    without = their_loss(Grpo, GRPO_SETTINGS, **METHODS["dapo"])
    assert (without[1] - expected[1]).abs().max() > 1e-3


def test_a_sample_without_a_verdict_has_no_advantage_in_either(monkeypatch):
    """TRL's reward function returns None for it, which is a NaN in its tensor of rewards."""
    monkeypatch.setitem(globals(), "REWARDS", [1.0, 0.0, float("nan"), 0.0, 1.0, -0.5])
    assert_equal(our_loss("dr_grpo"), their_loss(Grpo, GRPO_SETTINGS, **METHODS["dr_grpo"]))
