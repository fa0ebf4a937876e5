"""The cases against TRL are collected where extra `bench` is installed."""

from __future__ import annotations

import importlib.util

collect_ignore = [] if importlib.util.find_spec("trl") else ["test_cases.py"]
