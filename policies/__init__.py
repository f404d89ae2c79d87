"""Adapters, imported as vla_bench.policies."""

if __name__ != "vla_bench.policies":  # at the repository root `import policies` would make a second copy of every class
    raise ImportError("import vla_bench.policies, not policies; if it is missing, run: pip install -e .")
