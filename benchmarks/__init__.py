"""Measures pyext's ops beside torch's own: `python -m benchmarks --help`."""

import os

# Memory is counted by torch's profiler, whose library otherwise logs each start and stop.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
