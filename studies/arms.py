"""What the studies whose arms are DVC stages of their own have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from posttrain.evals.inputs import Source
from posttrain.records import DataError


def refuse_unlike(arms: Mapping[str, Source], keys: Sequence[str], *, wanted: str) -> None:
    """Raises DataError where two reports differ under one of `keys`; `wanted`: on what arms share a table."""
    for key in keys:
        values = {name: arm.need(key) for name, arm in sorted(arms.items())}
        first = next(iter(values), None)
        for name, value in values.items():
            if first is not None and value != values[first]:
                raise DataError(
                    f"{arms[name].file}: key '{key}': got {value}, wanted {values[first]} as in {arms[first].file}: "
                    f"arms share a table only with {wanted}"
                )
