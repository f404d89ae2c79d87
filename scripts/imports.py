"""Import whatever a command of vla-bench imports, so that its bytecode lies beside it. Run by scripts/setup.sh as root.

A virtual environment that others than its owner use cannot be written to by them: each of their processes would compile
anew what it imports. Compiling all that is installed takes a minute of two cores, this a quarter of it.
"""

from __future__ import annotations

import importlib
import pkgutil

import vla_bench
from vla_bench.gl import use_backend
from vla_bench.simulators import use_numba_cache

IN_FUNCTIONS = (
    *("mujoco", "robosuite", "libero.libero.envs", "pandas", "pyarrow.parquet", "pyarrow.dataset", "h5py", "cv2"),
    *(
        "matplotlib.pyplot",
        "matplotlib.backends.backend_svg",
        "scipy.stats",
        "scipy.optimize",
        "tyro",
        "tqdm",
    ),
    *("transformers.models.llama.modeling_llama", "transformers.models.siglip.modeling_siglip"),
    *(
        "transformers.models.gemma.modeling_gemma",
        "transformers.models.qwen2.modeling_qwen2",
        "diffusers",
        "tokenizers",
    ),
    *("pytest", "xdist", "torch._dynamo", "numba.core.registry", "OpenGL.GL", "mypy.main"),
)
"""What is imported late, inside functions, or by the tools."""

if __name__ == "__main__":
    use_backend()
    use_numba_cache()
    ours = [module.name for module in pkgutil.walk_packages(vla_bench.__path__, "vla_bench.")]
    for name in (*ours, *IN_FUNCTIONS):
        importlib.import_module(name)
