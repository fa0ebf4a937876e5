"""Symbolic comparison in a process that can be killed.

Simplification can hang in C code for as long as it likes, and math-verify's own timeouts work only in a main thread.
The worker sets an alarm whose default action ends it, so that it dies on time even when its parent is gone; the parent
starts a new one for the next question. Run as
`python -m posttrain.rewards.math_judge`: one JSON object per line in and out.
"""

from __future__ import annotations

import atexit
import json
import logging
import resource
import select
import signal
import subprocess
import sys
from functools import cache

_START_S = 60.0
_GRACE_S = 1.0
_MEMORY = 2 << 30


class JudgeDied(RuntimeError):
    """The worker ran into its deadline or crashed on a question."""


class MathJudge:
    """One worker, started with the first question and again after each death."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def equal(self, gold: str, answer: str, *, deadline_s: float) -> bool:
        """Whether the two are equal as mathematics; raises JudgeDied when that cannot be told within the deadline."""
        if self._process is None:
            self._process = self._start()
        reply = self._ask(self._process, {"gold": gold, "answer": answer, "deadline_s": deadline_s}, deadline_s)
        if reply is None:
            self.close()
            raise JudgeDied(f"no verdict within {deadline_s:g} s")
        if "error" in reply:
            raise JudgeDied(str(reply["error"]))
        return bool(reply["equal"])

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "posttrain.rewards.math_judge"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self._ask(process, {"gold": "1", "answer": "1", "deadline_s": _START_S}, _START_S) is None:
            process.kill()
            process.wait()
            raise JudgeDied("the worker did not start: is math-verify installed?")
        return process

    def _ask(
        self, process: subprocess.Popen[str], question: dict[str, object], deadline_s: float
    ) -> dict[str, object] | None:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            return None
        ready, _, _ = select.select([process.stdout], [], [], deadline_s + _GRACE_S)
        line = process.stdout.readline() if ready else ""
        return json.loads(line) if line else None

    def close(self) -> None:
        """End the worker, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@cache
def shared_judge() -> MathJudge:
    """The judge of this process; its worker ends with it."""
    judge = MathJudge()
    atexit.register(judge.close)
    return judge


def main() -> None:
    """Answer questions from stdin until it closes."""
    from math_verify import parse, verify  # the parent never needs it

    logging.disable(logging.WARNING)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for line in sys.stdin:
        question = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, question["deadline_s"])
        gold, answer = (parse(f"\\boxed{{{question[key]}}}", parsing_timeout=None) for key in ("gold", "answer"))
        if gold:
            reply: dict[str, object] = {"equal": verify(gold, answer, timeout_seconds=None)}
        else:
            reply = {"error": f"the reference answer cannot be parsed: {question['gold'][:80]!r}"}
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
