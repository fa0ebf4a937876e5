"""A stage starts without the optional imports that it does not use, and what wants those packages still finds them."""

import subprocess
import sys

from posttrain.lean_imports import UNUSED


def test_a_stage_starts_without_the_unused_packages_and_can_import_them_later() -> None:
    program = (
        "import sys, importlib, tasks.sft\n"
        f"unused, importing = {sorted(UNUSED.values())}, {sorted(UNUSED)}\n"
        "print('imported', [name for name in importing if name in sys.modules] == importing)\n"
        "print('beside', [name for name in unused if name in sys.modules])\n"
        "print('later', [importlib.import_module(name).__name__ for name in unused])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()[-3:]
    assert lines == ["imported True", "beside []", f"later {sorted(UNUSED.values())}"]
