"""Agreement with another implementation of the same methods: collected where extra `bench` is installed."""

from __future__ import annotations

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("trl") else ["test_trl_*.py"]
