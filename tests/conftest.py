"""Chooses the GL backend before any test module can import MuJoCo, which looks for it once, when it is imported."""

import contextlib

from vla_bench.errors import UsageError
from vla_bench.gl import use_backend

with contextlib.suppress(UsageError):  # without one, the tests that need no simulator still run
    use_backend()
