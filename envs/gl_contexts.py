"""OpenGL contexts of this process: freed while OpenGL still works, and never used in a process forked from it.

* MuJoCo closes EGL's display when Python ends, in an `atexit` callback of its import. What Python deletes after that
  prints a traceback (`EGL_NOT_INITIALIZED`), so contexts are freed in a callback that runs before.
* A driver keeps threads and locks that a forked process does not have: Mesa's llvmpipe waits for them for ever, in the
  first picture, in closing the display and when the process ends. So a child of a process that has had a context makes
  none, leaves untouched those it inherited, and ends without their libraries' last words.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
import weakref
from collections.abc import Callable
from typing import Any

from vla_bench.errors import UsageError

_living: list[weakref.finalize[Any, Any]] = []
"""What frees the contexts of this process that are not freed yet."""
_makers: list[int] = []
"""Process id of whoever made the first context, this process or one that it was forked from; empty before."""


def insist_on_own_process() -> None:
    """To be called before OpenGL is. Raises UsageError in a process forked from one that has had a context."""
    if _makers and _makers[0] != os.getpid():
        raise UsageError(
            "This process was forked from one that had rendered pictures, and OpenGL does not survive a fork: start "
            "it afresh, in Gymnasium with make_vec(..., vectorization_mode='async', "
            'vector_kwargs={"context": "spawn"}).'
        )


def owned(owner: object, free: Callable[..., None], *contexts: Any) -> Callable[[], object]:
    """What calls `free(*contexts)`, once: when it is called, or else when the owner or Python ends.

    Neither `free` nor the contexts, which were just made, may refer to the owner.
    """
    if not _makers:
        _makers.append(os.getpid())
        os.register_at_fork(after_in_child=_leave_alone)
    finalizer = weakref.finalize(owner, _free, os.getpid(), free, *contexts)
    finalizer.atexit = False  # weakref's own callback may come after MuJoCo's
    _living[:] = [*(other for other in _living if other.alive), finalizer]
    atexit.unregister(_free_all)
    atexit.register(_free_all)  # the last one registered is called first
    return finalizer


def _free(maker: int, free: Callable[..., None], *contexts: Any) -> None:
    if maker == os.getpid():
        free(*contexts)


def _free_all() -> None:
    for finalizer in _living:
        finalizer()


def _leave_alone() -> None:
    """In a forked child: nothing frees what is its parent's, not even Python's end."""
    for finalizer in _living:
        for context in (finalizer.peek() or ((), (), ()))[2][2:]:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(context))
    if egl := sys.modules.get("mujoco.egl"):
        atexit.unregister(egl.EGL.eglTerminate)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):  # glibc's: OSMesa's own end, registered before the fork, is then not come to
        libc.on_exit(ctypes.cast(libc._exit, ctypes.c_void_p), None)
