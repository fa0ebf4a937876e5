"""The numbers of the study: params.yaml beside this file, as strict as the chain's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from posttrain.config import Count, Positive, Section, parse_section, read_mapping


class Settings(Section):
    """The whole of studies/calibration/params.yaml."""

    models: Annotated[tuple[str, ...], Field(min_length=1)]
    """Folders below models/, in order: each is compared with the one before it. `base` has no chat habits."""
    questions: Annotated[int, Field(ge=2)]
    """The first ones of data/curated/heldout.jsonl, half of them to fit the repair on."""
    samples: Annotated[int, Field(ge=2)]
    """Per question and temperature; one half elects the answer that the other half is asked about."""
    deployed: Positive
    """Sampling temperature in use, beside 1; at 1 nothing is sampled twice."""
    bins: Count
    bootstrap: Count
    """Draws of questions behind every interval."""
    reply_tokens: Count
    """Room for a stated confidence."""

    @property
    def temperatures(self) -> tuple[float, ...]:
        """1 first."""
        return (1.0,) if self.deployed == 1.0 else (1.0, self.deployed)


def load_settings(path: Path) -> Settings:
    """Raises ConfigError naming every wrong field."""
    return parse_section(Settings, read_mapping(path), str(path))
