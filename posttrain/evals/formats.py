"""How numbers and texts look on the report page. Shares become per cent; model output is escaped."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup, escape

from posttrain.rewards.language import script_of

NOTHING = "\N{EN DASH}"


def highlight(text: str, script: str) -> Markup:
    """The text, escaped, with runs of words of any other script marked."""
    pieces: list[Markup] = []
    run, foreign = "", False
    for character in text:
        own = script_of(character)
        # What is no letter (a digit, a space) ends a marked run.
        if (own is not None and own != script) != foreign:
            pieces.append(_piece(run, foreign))
            run, foreign = "", not foreign
        run += character
    pieces.append(_piece(run, foreign))
    return Markup("").join(pieces)


def _piece(run: str, foreign: bool) -> Markup:
    return Markup("<mark>{}</mark>").format(run) if foreign else escape(run)


def percent(value: float) -> str:
    """A share in per cent: `87.3 %`."""
    return f"{100 * value:.1f} %"


def share(part: float, whole: float) -> str:
    """`part` in per cent of `whole`; a dash where there is nothing to have a share of."""
    return percent(part / whole) if whole else NOTHING


def growth(before: float, after: float) -> str:
    """By how many per cent a number grew, signed; a dash where it started from nothing."""
    return f"{signed(after / before - 1)} %" if before else NOTHING


def signed(value: float) -> str:
    """A difference of shares in points, with a true minus sign."""
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def interval(value: Mapping[str, float]) -> str:
    return f"{100 * value['low']:.1f}\N{EN DASH}{100 * value['high']:.1f}"


def number(value: float | None, digits: int = 1) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def millions(parameters: float) -> str:
    """Parameters: `0.92 M`, `1.7 B`."""
    if parameters >= 1e9:
        return f"{parameters / 1e9:.2g} B"
    return f"{parameters / 1e6:.2f} M" if parameters < 1e7 else f"{parameters / 1e6:.0f} M"
