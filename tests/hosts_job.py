"""A small sft for tests/test_hosts.py: `python -m tests.hosts_job`, in a project folder."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from posttrain.engine.distributed import gather_objects
from posttrain.job import open_job
from tests.loops.every_loop import LOOPS
from tests.loops.toy import weights_of

if __name__ == "__main__":
    with open_job("sft", parallel=True) as job:
        policy, summary = LOOPS["sft"](job.checkpoints, job.log)  # type: ignore[arg-type]
        networks = gather_objects(os.readlink("/proc/self/ns/net"))
        with job.publish_file(Path("models/weights.pt")) as file:
            torch.save(weights_of(policy), file)
        job.report({**summary, "processes": len(networks), "networks": len(set(networks))})
