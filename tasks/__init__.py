"""The stages, each a program: `python -m tasks.<stage>`."""

from posttrain.lean_imports import install

install()
