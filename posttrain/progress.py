"""What a person sees of a running chain: stage x of y, its last step and numbers, time left; and the final table."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

SIGNS = {"ran": "[green]ran[/]", "restored": "[cyan]restored[/]", "skipped": "[dim]up to date[/]"}

SHOWN = ("train/loss", "reward/accuracy", "reward/mean", "reward/total", "length/mean", "perf/tokens_per_second")
"""What a line of progress shows, where present, in this order."""


def progress_line(
    values: Mapping[str, float], step: int, total: int | None, first: tuple[int, float], now: float
) -> str:
    """`step 12/70 | train/loss 1.23 | 1:05 left`; `first` is the (step, time) of the run's first step."""
    parts = [f"step {step}" if total is None else f"step {step}/{total}"]
    parts += [f"{name} {values[name]:.4g}" for name in SHOWN if name in values]
    done = step - first[0]
    if total is not None and done > 0:
        left = round((now - first[1]) / done * (total - step))
        parts.append(f"{left // 60}:{left % 60:02d} left")
    return " | ".join(parts)


class Display:
    """One line per finished stage and a live one for the present; plain lines where the output is no terminal."""

    def __init__(self, stages: Sequence[str], console: Console | None = None) -> None:
        self.stages = list(stages)
        self.console = console or Console(highlight=False)
        self._live: Live | None = None
        self._stage = ""
        self._began = 0.0
        self._last = ""

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self._live = Live(console=self.console, get_renderable=self._render, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stage = ""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def begin(self, stage: str) -> None:
        self._stage, self._began, self._last = stage, time.monotonic(), ""

    def line(self, text: str) -> None:
        """One line of the stage's output; on a terminal, its own lines replace each other."""
        prefix = f"{self._stage}: "
        if text.startswith(prefix):
            self._last = text.removeprefix(prefix)
            if self._live is None:
                self.console.print(f"{self._place()} {text}", markup=False, soft_wrap=True)

    def end(self, outcome: str) -> None:
        seconds = time.monotonic() - self._began
        sign = SIGNS.get(outcome, f"[red]{outcome}[/]")
        self.console.print(f"{self._place()} [bold]{self._stage:<16}[/] {sign} [dim]{clock(seconds)}[/]")
        self._stage = ""

    def _place(self) -> str:
        number = self.stages.index(self._stage) + 1 if self._stage in self.stages else 0
        return f"({number:>2}/{len(self.stages)})"

    def _render(self) -> Group | Text:
        if not self._stage:
            return Text("")
        head = Text.assemble(
            (f"{self._place()} ", ""), (f"{self._stage:<16} ", "bold"), (clock(time.monotonic() - self._began), "dim")
        )
        return Group(Spinner("dots", text=head), Text(f"        {self._last}", overflow="ellipsis", no_wrap=True))


def clock(seconds: float) -> str:
    """125 -> 2:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def model_table(folder: Path = Path("reports/evaluate"), *, order: Sequence[str]) -> Table:
    """All evaluated models; narrow enough for a terminal of 80 columns, which a log counts as too."""
    title = "Held-out problems, in %: accuracy (avg@k, 95 % interval), flags followed,\nthoughts that mix languages"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("model", "params", "thinking", "tokens", "direct", "tokens", "flags", "mixed"):
        table.add_column(name, justify="left" if name == "model" else "right", no_wrap=True)
    for model in order:
        path = folder / f"{model}.json"
        if path.is_file():
            table.add_row(*model_row(json.loads(path.read_text(encoding="utf-8"))))
    return table


def model_row(report: Mapping[str, Any]) -> list[str]:
    think, direct = report["think"], report["no_think"]
    return [
        str(report["model"]),
        f"{report['parameters'] / 1e6:.2f} M",
        interval(think["avg"]),
        f"{think['tokens_mean']:.0f}",
        interval(direct["avg"]),
        f"{direct['tokens_mean']:.0f}",
        in_percent(report["mode_following"]),
        in_percent(think["language_mixing"]),
    ]


def interval(value: Mapping[str, float]) -> str:
    return f"{100 * value['value']:.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def in_percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
