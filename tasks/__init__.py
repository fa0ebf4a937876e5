"""The stages, each a program: `python -m tasks.<stage>`."""

from posttrain.guard import end_with_dvc
from posttrain.lean_imports import install

end_with_dvc()  # before the imports, which take seconds
install()
