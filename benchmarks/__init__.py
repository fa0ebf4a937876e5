"""Side by side with TRL, and what this project's own parts cost."""

from posttrain.lean_imports import install

# As stages do, and on both sides: what neither side uses is in neither side's memory.
install()
