"""Command lines of programs that take none."""

from __future__ import annotations

import argparse
import sys


def no_arguments(description: str | None) -> None:
    """`--help` prints the description; any other argument is an error, before anything is done."""
    program = sys.modules["__main__"].__spec__
    name = f"python -m {program.name.removesuffix('.__main__')}" if program else None
    layout = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(prog=name, description=description, formatter_class=layout).parse_args()
