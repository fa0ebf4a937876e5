"""Made-up rows of evaluations for tests: questions with a difficulty, models with a skill."""

import random

from posttrain.evals.rows import BudgetSample, ModeSamples, QuestionRow

DOMAINS = ("chain_sum", "basic_arithmetic", "gcd")


def samples(rng: random.Random, rate: float, *, count: int, tokens: float, mixed: float, gold: str) -> ModeSamples:
    correct = tuple(rng.random() < rate for _ in range(count))
    answers = tuple(gold if flag else rng.choice((str(int(gold) + rng.randrange(1, 4)), None)) for flag in correct)
    lengths = tuple(max(4, round(rng.gauss(tokens if flag else tokens * 1.4, tokens / 6))) for flag in correct)
    return ModeSamples(
        answers=answers,
        correct=correct,
        tokens=lengths,
        thinking_tokens=tuple(max(0, n - 9) for n in lengths),
        finish=tuple("stop" if answer else "length" for answer in answers),
        well_formed=tuple(answer is not None for answer in answers),
        mixed=tuple(rng.random() < mixed for _ in range(count)),
        text=f"<think>\nStep by step: 3 + 4 = 7\n</think>\n\n\\boxed{{{answers[0] or ''}}}<|im_end|>",
    )


def rows(
    *,
    questions: int,
    skill: float,
    no_think: float,
    tokens: float,
    mixed: float = 0.0,
    chat: bool = True,
    seed: int = 0,
) -> list[QuestionRow]:
    rng = random.Random(seed)
    made = []
    for q in range(questions):
        rate = min(1.0, max(0.0, rng.gauss(skill, 0.25)))
        gold = str(random.Random(q).randrange(5, 60))
        think = samples(rng, rate, count=8, tokens=tokens, mixed=mixed, gold=gold)
        made.append(
            QuestionRow(
                id=f"q{q:03d}",
                domain=DOMAINS[q % 3],
                prompt=f"State the final answer to the following arithmetic problem: {gold} + 4 - 4 =",
                gold=gold,
                think=think,
                no_think=samples(rng, min(1.0, no_think), count=8, tokens=9, mixed=0.0, gold=gold),
                follows=(True, rng.random() < 0.98) if chat else (),
                budget=tuple(
                    BudgetSample(b, rng.random() < no_think + (rate - no_think) * min(1.0, b / tokens), b < tokens)
                    for b in (0, 8, 16, 32, 64)
                ),
            )
        )
    return made
