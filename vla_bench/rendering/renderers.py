"""What rendered the pictures of an episode, and whether two renderers give the same pixels. Values in, sentences out.

Scores are compared across renderers, as the field does; where the pixels may differ, that is said and marked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations, product
from typing import Any, Literal, NamedTuple

from vla_bench.types import EpisodeResult

MARK = "†"
"""Beside what was rendered with other pixels, and before the sentence that says so."""
BACKENDS = ("osmesa", "egl", "glfw", "cgl")
"""A renderer's name begins with one of these."""

Likeness = Literal["equal", "unknown", "unequal"]
"""Whether the pixels are the same."""
LIKENESSES: tuple[Likeness, ...] = ("equal", "unknown", "unequal")
"""From what is fine to what is not."""


class Drawn(NamedTuple):
    """What rendered an episode: the columns of these names. Both are empty when nothing was rendered."""

    renderer: str = ""
    render_probe: str = ""

    def __str__(self) -> str:
        probe = f"probe {self.render_probe}" if self.render_probe else "no probe"
        return f"{self.renderer} ({probe})" if self.renderer else "nothing"


def drawn(row: EpisodeResult) -> Drawn:
    """What rendered that episode."""
    return Drawn(row.renderer, row.render_probe)


def likeness(a: Drawn, b: Drawn) -> Likeness:
    """Whether these two give the same pixels: by their probes or, in older runs, which have none, by their names.

    All llvmpipes count as equal then: every image and state of LIBERO-Long, LIBERO-Spatial, Lift and tiny was the same
    with OSMesa's and EGL's.
    """
    if not a.renderer or not b.renderer:
        return "equal"
    versions = {drawn.render_probe.partition(":")[0] for drawn in (a, b)}
    if len(versions) == 1 and "" not in versions:
        return "equal" if a.render_probe == b.render_probe else "unequal"
    return "equal" if "llvmpipe" in a.renderer and "llvmpipe" in b.renderer else "unknown"


def least_alike(pairs: Iterable[tuple[Drawn, Drawn]]) -> Likeness:
    """The worst that is found among them."""
    return max((likeness(a, b) for a, b in pairs), key=LIKENESSES.index, default="equal")


def within(drawn: Iterable[Drawn]) -> Likeness:
    """Whether episodes that these painted have the same pixels."""
    return least_alike(combinations(sorted(set(drawn)), 2))


def between(a: Iterable[Drawn], b: Iterable[Drawn]) -> Likeness:
    """Whether all of these paint the same pixels as all of those."""
    return least_alike(product(set(a), set(b)))


def pixels_sentence(found: Likeness, painted: Mapping[str, Iterable[Drawn]]) -> str:
    """What a reader must know, after a mark; "" when the pixels are equal. `painted` is who was painted by what."""
    if found == "equal":
        return ""
    by = "; ".join(f"{name} by {_listed(drawn)}" for name, drawn in painted.items())
    unknown = "Whether all pictures have the same pixels is not known"
    said = "Not all pictures have the same pixels" if found == "unequal" else unknown
    return f"{MARK} {said} ({by}): that alone can change what a policy that looks at them does."


def _listed(drawn: Iterable[Drawn]) -> str:
    return " and ".join(map(str, sorted({one for one in drawn if one.renderer}))) or "nothing"


def without_renderer(protocol: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The protocol without the OpenGL renderer that older runs count to it, and its name, "" where there is none."""
    simulator = protocol.get("simulator")
    name = simulator.get("renderer") if isinstance(simulator, Mapping) else None
    if not isinstance(name, str) or name.partition(" ")[0] not in BACKENDS:
        return dict(protocol), ""
    rest = {field: value for field, value in simulator.items() if field != "renderer"}  # type: ignore[union-attr]
    return {**protocol, "simulator": rest}, name
