"""Which domain a problem belongs to, so that a data set's balance can be seen (Kimi k1.5, arXiv 2501.12599, sec. 2.1).

Gym families bring the library's own category; rows of users are tagged by the first rule below whose words occur.
"""

from __future__ import annotations

import re

OTHER = "other"

# Most particular first: a probability question also has numbers in it, and a code question may count something.
_RULES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (domain, re.compile(pattern, re.IGNORECASE))
    for domain, pattern in (
        ("code", r"\b(python|java|c\+\+|javascript|source code|pseudocode|program that|write a function|def \w+\()"),
        ("probability", r"\b(probabilit(y|ies)|expected value|at random|randomly|dice|coin flips?|fair coin)\b"),
        (
            "geometry",
            r"\b(triangles?|circles?|radius|angles?|polygons?|rectangles?|perimeter|area of|cm\^?2|hypotenuse)\b",
        ),
        ("calculus", r"\b(derivative|integral|integrate|differentiate|limit of)\b|\\int\b|\\lim\b"),
        ("number_theory", r"\b(primes?|divisors?|divisible|gcd|lcm|modulo|remainder|congruent)\b"),
        (
            "algebra",
            r"\b(solve for|equations?|polynomials?|roots? of|quadratic|simplify|factori[sz]e)\b|\d[a-z]\s*[-+=]",
        ),
        ("logic", r"\b(logically|knights?|knaves?|truth-teller|premises?|syllogism|implies)\b"),
        ("science", r"\b(physics|velocity|voltage|chemical|molecules?|atoms?|cells?|newtons?|joules?)\b"),
        ("arithmetic", r"\d"),
    )
)


def domain_of(prompt: str) -> str:
    """Domain by keyword; any other prompt with a number in it counts as arithmetic."""
    return next((domain for domain, rule in _RULES if rule.search(prompt)), OTHER)
