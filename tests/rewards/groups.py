"""Groups of samples for tests of reward terms."""

from posttrain.chat.split import split_response
from posttrain.records import Finish, Mode, Problem, Verdict
from posttrain.rewards.terms import Group, Sample

PROBLEM = Problem("p1", "What is 3 + 4?", "7", "exact", "arithmetic", "gym:chain_sum", pass_rate=0.5)
GOOD = "<think>so it is</think>\\boxed{7}"


def sample(
    text: str = GOOD,
    *,
    correct: bool = True,
    ids: tuple[int, ...] = (1,),
    finish: Finish = "stop",
    mode: Mode = "think",
) -> Sample:
    verdict = Verdict(1.0, "correct") if correct else Verdict(0.0, "wrong")
    return Sample(verdict, split_response(text, mode), ids, finish)


def group(*samples: Sample, mode: Mode = "think", max_tokens: int = 100, problem: Problem = PROBLEM) -> Group:
    return Group(problem, mode, max_tokens, samples, prompt_ids=(9,))
