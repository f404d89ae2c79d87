"""Success rates that papers and projects published, in percent, each with where it was read. Nothing here was run here.

Protocols differ between rows and from ours: step limits, simulator versions, seeds, who counted crashes as failures.
`read` says how near to the source the number was read: "source" (the project's own README, docs or paper), or "quoted"
(a later paper's or report's table; the original was not opened).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

NOTICE = "published, not run here"


class LiberoRow(NamedTuple):
    """Success in percent per suite, None where it was not given."""

    method: str
    spatial: float | None
    object: float | None
    goal: float | None
    long: float | None
    mean: float | None
    """As published, not recomputed."""
    source: str
    read: Literal["source", "quoted"]


class CalvinRow(NamedTuple):
    """Percent of chains with at least 1..5 instructions done, and their mean number."""

    method: str
    split: Literal["D→D", "ABC→D", "ABCD→D"]
    """Scenes of training and, after the arrow, of evaluation."""
    at_least: tuple[float | None, float | None, float | None, float | None, float | None]
    length: float
    source: str
    read: Literal["source", "quoted"]


_OPENVLA = "OpenVLA README and paper (arXiv 2406.09246); 3 x 500 episodes"
_OFT = "OpenVLA-OFT README (github.com/moojink/openvla-oft)"
_OFT_PAPER = "OpenVLA-OFT paper (arXiv 2502.19645)"
_OPENPI_OLD = "openpi README at commit 7cf5f60"
_LATER = "tables of later papers"
_SMOLVLA = "SmolVLA paper (arXiv 2506.01844), as quoted later"
_HARNESS = "independent reproduction, allenai/vla-evaluation-harness at e1ee9ad"

LIBERO = (
    LiberoRow("Diffusion Policy (from scratch)", 78.3, 92.5, 68.3, 50.5, 72.4, _OPENVLA, "source"),
    LiberoRow("Octo (fine-tuned)", 78.9, 85.7, 84.6, 51.1, 75.1, _OPENVLA, "source"),
    LiberoRow("OpenVLA", 84.7, 88.4, 79.2, 53.7, 76.5, _OPENVLA, "source"),
    LiberoRow("OpenVLA", 86.6, 86.6, 79.0, 52.8, 76.2, _HARNESS, "source"),
    LiberoRow("OpenVLA, parallel decoding and chunks", None, None, None, 86.5, 90.2, _OFT_PAPER, "source"),
    LiberoRow("OFT diffusion head, third-person only", 96.9, 98.1, 95.6, 91.1, 95.4, _OFT_PAPER, "quoted"),
    LiberoRow("OFT L1 head, third-person only", None, None, None, None, 95.3, _OFT_PAPER, "source"),
    LiberoRow("OpenVLA-OFT (a model per suite)", 97.6, 98.4, 97.9, 94.5, 97.1, _OFT, "source"),
    LiberoRow("OpenVLA-OFT (one model)", 97.7, 98.0, 96.1, 95.3, 96.8, _OFT, "source"),
    LiberoRow("OpenVLA-OFT (one model)", None, None, None, None, 96.7, _HARNESS, "source"),
    LiberoRow("π0 (30k steps)", 96.8, 98.8, 95.8, 85.2, 94.15, _OPENPI_OLD, "source"),
    LiberoRow("π0-FAST", 96.4, 96.8, 88.6, 60.2, 85.5, _OPENPI_OLD, "source"),
    LiberoRow("π0 (another training run)", 90.0, 86.0, 95.0, 73.0, 86.0, _SMOLVLA, "quoted"),
    LiberoRow("π0.5 (30k steps)", 98.8, 98.2, 98.0, 92.4, 96.85, "openpi README at 15a9616", "source"),
    LiberoRow("π0.5 in lerobot", 97.0, 99.0, 98.0, 96.0, 97.5, "lerobot documentation, 0.6.2", "source"),
    LiberoRow("π0.5", 98.0, 99.6, 98.6, 94.6, 97.7, _HARNESS, "source"),
    LiberoRow("SmolVLA", 93.0, 94.0, 91.0, 77.0, 88.8, _SMOLVLA, "quoted"),
    LiberoRow(
        "CogACT (re-trained by others)",
        97.2,
        98.0,
        90.2,
        88.8,
        93.6,
        f"CogACT (arXiv 2411.19650) in {_LATER}",
        "quoted",
    ),
    LiberoRow("DB-CogACT", 93.8, 97.8, 96.2, 91.8, 94.9, "Dexbotic, as quoted later; another table 94.65", "quoted"),
    LiberoRow("UniVLA", 96.5, 96.8, 95.6, 92.0, 95.2, f"UniVLA (arXiv 2505.06111) in {_LATER}", "quoted"),
    LiberoRow("MDT", 78.5, 87.5, 73.5, 64.8, 76.1, f"MDT (arXiv 2407.05996) in {_LATER}", "quoted"),
    LiberoRow("GR00T N1", 94.4, 97.6, 93.0, 90.6, 93.9, f"GR00T N1 (arXiv 2503.14734) in {_LATER}", "quoted"),
    LiberoRow("MemoryVLA", 98.4, 98.4, 96.4, 93.4, 96.7, f"MemoryVLA (arXiv 2508.19236) in {_LATER}", "quoted"),
    LiberoRow("VLA-Adapter", 97.8, 99.2, 97.2, 95.0, 97.3, f"VLA-Adapter (arXiv 2509.09372) in {_LATER}", "quoted"),
)

_RECONVLA = "ReconVLA paper (arXiv 2508.10333), 500 chains, as quoted in later tables"
_ROBOFLAMINGO = "RoboFlamingo README"
_GR1 = "GR-1 README (github.com/bytedance/GR-1)"
_FLOWER = "FLOWER's project page"
_NOT_GIVEN = (None, None, None, None, None)

CALVIN = (
    CalvinRow("ReconVLA", "ABC→D", (95.6, 87.6, 76.9, 69.3, 64.1), 3.95, _RECONVLA, "quoted"),
    CalvinRow("ReconVLA's baseline VLA", "ABC→D", (88.8, 76.1, 63.7, 57.0, 49.0), 3.36, _RECONVLA, "quoted"),
    CalvinRow("OpenVLA", "ABC→D", (91.3, 77.8, 62.0, 52.1, 43.5), 3.27, _LATER, "quoted"),
    CalvinRow("RoboFlamingo", "ABC→D", (82.4, 61.9, 46.6, 33.1, 23.5), 2.48, _ROBOFLAMINGO, "source"),
    CalvinRow("GR-1", "ABC→D", (85.4, 71.2, 59.6, 49.7, 40.1), 3.06, _GR1, "source"),
    CalvinRow("π0", "ABC→D", (93.8, 85.0, 76.7, 68.1, 59.9), 3.84, f"{_LATER}; 3.92 in others", "quoted"),
    CalvinRow("π0.5", "ABC→D", (94.4, 88.4, 85.3, 80.1, 76.1), 4.26, "OptimusVLA's table", "quoted"),
    CalvinRow(
        "UniVLA", "ABC→D", (95.5, 85.8, 75.4, 66.9, 56.5), 3.80, f"UniVLA (arXiv 2505.06111) in {_LATER}", "quoted"
    ),
    CalvinRow("RoboDual", "ABC→D", (94.4, 82.7, 72.1, 62.4, 54.4), 3.66, _LATER, "quoted"),
    CalvinRow("SuSIE", "ABC→D", (87.0, 69.0, 49.0, 38.0, 26.0), 2.69, _FLOWER, "quoted"),
    CalvinRow("DeeR-VLA", "ABC→D", (84.8, 72.3, 54.9, 44.6, 33.5), 2.90, _FLOWER, "quoted"),
    CalvinRow(
        "3D Diffuser Actor", "ABC→D", (93.8, 80.3, 66.2, 53.3, 41.2), 3.35, f"{_FLOWER}; 3.27 elsewhere", "quoted"
    ),
    CalvinRow("CLOVER", "ABC→D", _NOT_GIVEN, 3.53, _LATER, "quoted"),
    CalvinRow("MoDE", "ABC→D", (96.2, 88.9, 81.1, 71.8, 63.5), 4.01, _FLOWER, "quoted"),
    CalvinRow("GR-MG", "ABC→D", _NOT_GIVEN, 4.04, _LATER, "quoted"),
    CalvinRow("DB-CogACT", "ABC→D", _NOT_GIVEN, 4.06, f"{_LATER}; 4.02 reproduced by {_HARNESS}", "quoted"),
    CalvinRow("UP-VLA", "ABC→D", _NOT_GIVEN, 4.08, f"UP-VLA (arXiv 2501.18867) in {_LATER}", "quoted"),
    CalvinRow("OpenVLA-OFT", "ABC→D", _NOT_GIVEN, 4.10, "as reported by VLA-Adapter", "quoted"),
    CalvinRow("RoboVLM", "ABC→D", _NOT_GIVEN, 4.25, f"RoboVLMs (arXiv 2412.14058) in {_LATER}", "quoted"),
    CalvinRow("Seer-Large", "ABC→D", (96.3, 91.6, 86.1, 80.3, 74.0), 4.28, _FLOWER, "quoted"),
    CalvinRow("VPP", "ABC→D", _NOT_GIVEN, 4.33, _LATER, "quoted"),
    CalvinRow("X-VLA", "ABC→D", _NOT_GIVEN, 4.43, f"{_LATER}; 4.30 reproduced by {_HARNESS}", "quoted"),
    CalvinRow("DreamVLA", "ABC→D", _NOT_GIVEN, 4.44, "DreamVLA paper (arXiv 2507.04447), abstract", "source"),
    CalvinRow("FLOWER", "ABC→D", _NOT_GIVEN, 4.53, f"{_FLOWER}, whose columns add up to 4.49", "source"),
    CalvinRow("ReconVLA", "ABCD→D", (98.0, 90.0, 84.5, 78.5, 70.5), 4.23, f"{_RECONVLA}; 4.22 elsewhere", "quoted"),
    CalvinRow("GR-1", "ABCD→D", (94.9, 89.6, 84.4, 78.9, 73.1), 4.21, _GR1, "source"),
    CalvinRow("RoboFlamingo", "ABCD→D", (96.4, 89.6, 82.4, 74.0, 66.0), 4.09, _ROBOFLAMINGO, "source"),
    CalvinRow(
        "UP-VLA", "ABCD→D", (96.2, None, None, None, 81.2), 4.42, f"UP-VLA (arXiv 2501.18867) in {_LATER}", "quoted"
    ),
    CalvinRow(
        "RoboVLMs", "ABCD→D", (96.7, None, None, None, 82.6), 4.49, f"RoboVLMs (arXiv 2412.14058) in {_LATER}", "quoted"
    ),
    CalvinRow("MDT", "ABCD→D", (98.6, None, None, None, 80.1), 4.52, f"MDT (arXiv 2407.05996) in {_LATER}", "quoted"),
    CalvinRow("HULC", "ABCD→D", (88.9, None, None, None, None), 3.06, "quoted in GR-1's material", "quoted"),
    CalvinRow("FLOWER", "ABCD→D", _NOT_GIVEN, 4.67, f"{_FLOWER}, whose columns add up to 4.74", "source"),
    CalvinRow("MDT", "D→D", (93.7, 84.5, 74.1, 64.4, 55.6), 3.72, _FLOWER, "quoted"),
)
