"""Adapters, imported as vla_bench.envs."""

if __name__ != "vla_bench.envs":  # at the repository root `import envs` would make a second copy of every class
    raise ImportError("import vla_bench.envs, not envs; if it is missing, run: pip install -e .")
