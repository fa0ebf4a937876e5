"""The stages, each a program: `python -m tasks.<stage>`."""

import contextlib
import sys

from posttrain.config import ConfigError
from posttrain.guard import end_with_dvc
from posttrain.lean_imports import install
from posttrain.system import apply_environment, load_system

# All before the imports of a stage, which take seconds.
end_with_dvc()
if any(argument.startswith("tasks.") for argument in sys.orig_argv):
    with contextlib.suppress(ConfigError):  # open_job tells of it
        apply_environment(load_system())
install()
