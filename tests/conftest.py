"""For all tests: this process counts as set up (no re-exec), nothing is tracked, and no hub is asked."""

from __future__ import annotations

import os

os.environ.update(
    POSTTRAIN_ENVIRONMENT="1",
    POSTTRAIN_TRACKING="off",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    DVC_NO_ANALYTICS="1",
    MLFLOW_DISABLE_TELEMETRY="true",
)
