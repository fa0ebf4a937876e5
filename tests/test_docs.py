"""What the docs name exists: a page per stage, parameters as in the default profile, metrics as logged, links."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "models/README.md", ROOT / "data/README.md"])
PARAMS = yaml.safe_load((ROOT / "profiles/tiny.yaml").read_text(encoding="utf-8"))

_SPAN = re.compile(r"`([^`\n]+)`")
_METRIC = re.compile(r"(?:train|reward|kl|length|eval|rollout|time|perf)/\w+")
_LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s#]+)")


def spans(page: Path) -> list[str]:
    return _SPAN.findall(page.read_text(encoding="utf-8"))


def known(values: Any, path: list[str]) -> bool:
    if not path:
        return True
    return isinstance(values, dict) and path[0] in values and known(values[path[0]], path[1:])


def test_every_stage_has_a_page() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert [stage for stage in stages if not (ROOT / f"docs/{stage}.md").is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_named_parameters_are_in_the_default_profile(page: Path) -> None:
    dotted = (span.partition(":")[0].split(".") for span in spans(page) if re.fullmatch(r"\w+(\.\w+)+(: \S+)?", span))
    wrong = [".".join(path) for path in dotted if path[0] in PARAMS and not known(PARAMS, path)]
    # kind is told apart by `base.kind`; file names such as `grpo.json` are no parameters.
    assert [name for name in wrong if not name.endswith((".json", ".jsonl", ".py", ".md", ".yaml"))] == []


def test_named_metrics_are_logged() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "posttrain").rglob("*.py"))
    named = {span for page in PAGES for span in spans(page) if _METRIC.fullmatch(span)}
    # Either whole in the code, or put together there from a prefix and a quoted name.
    unknown = [name for name in sorted(named) if name not in code and f'"{name.split("/")[1]}"' not in code]
    assert unknown == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    links = (link for link in _LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link)
    assert [link for link in links if not (page.parent / link).exists()] == []
