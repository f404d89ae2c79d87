"""What must be settled before any test module is imported: MuJoCo looks for its GL backend once, torch for its threads.

Tests run on all cores at once, one thread each: two threads of torch on a busy core wait for each other.
"""

import contextlib
import gc
import os

import pytest

from vla_bench.errors import UsageError
from vla_bench.gl import use_backend

os.environ.setdefault("OMP_NUM_THREADS", "1")
with contextlib.suppress(UsageError):  # without one, the tests that need no simulator still run
    use_backend()


@pytest.fixture(autouse=True, scope="module")
def _others_objects_are_out_of_the_way() -> None:
    """The runner collects garbage whenever a scene is dropped. What all test modules have imported is none: searched
    anew each time, it made up most of the time of the tests that play many short episodes."""
    gc.collect()
    gc.freeze()
