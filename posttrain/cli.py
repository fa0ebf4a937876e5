"""The command line: posttrain use | doctor | why | compare | chat | ui. Each command imports only what it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from posttrain import tracking
from posttrain.config import ConfigError, load_params
from posttrain.errors import StageError
from posttrain.files import write_atomic
from posttrain.guard import guarded, last_lines, stop
from posttrain.records import DataError
from posttrain.system import load_system

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
console = Console()


@app.command()
def use(
    profile: str,
    objective: Annotated[str | None, typer.Option(help="An objective of objectives/, laid over the profile.")] = None,
) -> None:
    """Write params.yaml from a profile."""
    from posttrain.profiles import compose

    write_atomic(Path("params.yaml"), compose(profile, objective))
    console.print(f"params.yaml: profile {profile}" + (f", objective {objective}" if objective else ""))


@app.command()
def doctor() -> None:
    """What this machine is, and what will be chosen; exit code 1 when something will not work."""
    from posttrain.doctor import problems, report

    for table in report():
        console.print(table)
    wrong = problems()
    for line in wrong:
        console.print(f"[red]{line}[/]")
    raise typer.Exit(1 if wrong else 0)


@app.command()
def why(stage: Annotated[str | None, typer.Argument(help="One stage; none: all.")] = None) -> None:
    """Why a stage would run again."""
    # Without a target DVC would list the studies too, which the chain does not run.
    command = [sys.executable, "-m", "dvc", "status", "--json", stage or "dvc.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StageError(done.stderr.strip() or done.stdout.strip())
    status = json.loads(done.stdout)
    if not status:
        console.print("up to date: nothing would run")
    for name, changes in status.items():
        console.print(f"[bold]{name}[/]")
        for line in explain_status(changes):
            console.print(f"  {line}", markup=False)


def explain_status(changes: list[Any]) -> list[str]:
    """`dvc status --json` of one stage as sentences."""
    lines: list[str] = []
    for change in changes:
        if isinstance(change, str):
            lines.append(change)
            continue
        for kind, items in change.items():
            what = {"changed deps": "reads", "changed outs": "wrote"}.get(kind, kind)
            for path, state in items.items():
                if isinstance(state, dict):
                    lines += [f"parameter {key}: {value}" for key, value in state.items()]
                else:
                    lines.append(f"{what} {path}: {state}")
    return lines


@app.command()
def compare() -> None:
    """The last two executions of the chain, stage by stage."""
    from posttrain.compare import compare as table

    console.print(table(tracking.store_uri(load_system()), f"posttrain/{load_params().profile}"))


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="A folder, or a model of the chain: sft, grpo, fuse, align, distill.")],
    no_think: Annotated[bool, typer.Option("--no-think", help="Answer without thinking.")] = False,
    budget: Annotated[int | None, typer.Option(help="Thinking tokens after which it has to answer.", min=0)] = None,
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.0,
) -> None:
    """Talk to a model; an empty line ends it."""
    from posttrain.conversation import open_conversation  # imports torch and transformers

    folder = Path(model) if Path(model).is_dir() else Path("models") / model
    talk = open_conversation(folder, mode="no_think" if no_think else "think", budget=budget, temperature=temperature)
    while question := console.input("[bold]> [/]").strip():
        thinking, answer = talk.ask(question)
        if thinking:
            console.print(thinking, style="dim", markup=False)
        console.print(answer, markup=False)


@app.command()
def ui(
    prefect_port: Annotated[int, typer.Option()] = 4200,
    mlflow_port: Annotated[int, typer.Option()] = 5000,
) -> None:
    """Both UIs on the loopback until Ctrl-C."""
    loopback = ["--host", "127.0.0.1", "--port"]
    store = tracking.store_uri(load_system())
    api = f"http://127.0.0.1:{prefect_port}/api"
    commands = {
        f"Prefect  http://127.0.0.1:{prefect_port}": ["prefect", "server", "start", *loopback, str(prefect_port)],
        f"MLflow   http://127.0.0.1:{mlflow_port}": [
            *("mlflow", "server", "--backend-store-uri", store, "--workers", "1"),
            *(*loopback, str(mlflow_port)),
        ],
    }
    servers, outputs = [], []
    for name, command in commands.items():
        variables = {**os.environ, "PREFECT_UI_API_URL": api, "PREFECT_LOGGING_SERVER_LEVEL": "ERROR"}
        servers.append(guarded([sys.executable, "-m", *command], environment=variables))
        outputs.append(last_lines(servers[-1]))
        console.print(name)
    console.print("Ctrl-C ends both.")
    try:
        while all(server.poll() is None for server in servers):
            time.sleep(0.5)
        for server, output in zip(servers, outputs, strict=True):
            if server.poll() is not None:
                console.print("\n".join(output), markup=False)
        raise typer.Exit(1)
    except KeyboardInterrupt:
        pass
    finally:
        for server in servers:
            stop(server)


def main() -> None:
    """Known errors: one message, exit code 2 for bad input, 1 else."""
    try:
        app()
    except (ConfigError, DataError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except StageError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
