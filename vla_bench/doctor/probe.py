"""A policy's answers held against an expert's actions at the same moments: which known fault explains the difference.

Pure functions over arrays. The idea: every known fault is undone in thought. A `Reading` is what the policy's answers
would be without that fault: the same numbers in another order, or what it answered when its picture was turned over. A
fault is named only when its reading agrees with the expert (correlation certainly above `ALIKE`) and certainly better
than the answers as given, by `FAR` or more. Certainly: at 99.9 % and 99 %, Student's t.

The error of a correlation r of standardised x and a is the mean of its influence x a - r (x^2 + a^2) / 2 over the
moments (Devlin, Gnanadesikan and Kettenring 1975, Biometrika 62:531). Moments of one episode resemble each other: a
series with lag-1 autocorrelation p counts as n (1 - p) / (1 + p) independent ones (Bartlett 1935, J. R. Stat. Soc.
98:536), and episodes are independent.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_bench.types import ActionSpec, Float32

Float64 = NDArray[np.float64]
Ints = NDArray[np.intp]

CONFIDENCE = 0.999  # that answers are the expert's: some thirty readings are tried, and a false alarm costs a day
CONFIDENCE_GAIN = 0.99  # that they are so only in another reading, when they certainly are in that one
ALIKE = 0.5  # a correlation certainly above this is no accident of an untrained network
RELATED = 0.15  # certainly above this, and above ALIKE by appearance
FAR = 0.15
TIE = 0.05  # readings whose correlations differ by less are not told apart
SCALE = 3.0  # a good policy may be slower or faster than the expert, but hardly by this factor
SCORED = 16  # actions of a chunk that count: what lies farther ahead depends on how the first ones went
LIVELY = 0.2  # of its group's liveliest entry's spread: less is noise of the expert's controller
STILL = 0.02  # spread of an entry that the expert does not use
OFFSET = 0.5  # of the expert's largest command


class Agreement(NamedTuple):
    """Mean correlation over the lively entries of a group, with its interval."""

    r: float
    low: float
    high: float
    influence: Float64
    """(N,) what each moment adds to the error of r; their mean is 0."""

    @property
    def alike(self) -> bool:
        return self.low >= ALIKE

    @property
    def related(self) -> bool:
        """It follows the expert, if not as closely: enough to ask about sign and size."""
        return self.r >= ALIKE and self.low >= RELATED

    def __str__(self) -> str:
        return f"{self.r:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Moments:
    """When the policy was asked, and what the expert did from then on."""

    spec: ActionSpec
    actions: tuple[Float32, ...]
    """The expert's, (T, A) per episode."""
    episode: Ints
    """(N,) index into `actions`."""
    step: Ints
    """(N,) control step, in order within an episode."""

    def wanted(self, offsets: Ints) -> Float64:
        """(N, H, A): the expert's actions `offsets` (H,) steps after each moment; NaN before or after its episode."""
        out = np.full((len(self.step), len(offsets), self.spec.dim), np.nan)
        for row, (episode, step) in enumerate(zip(self.episode, self.step, strict=True)):
            at = step + offsets
            inside = (at >= 0) & (at < len(self.actions[episode]))
            out[row, inside] = self.actions[episode][at[inside]]
        return out

    @cached_property
    def live(self) -> Mapping[str, list[int]]:
        """The entries of each group that the expert uses; a group that it does not use is missing."""
        spread = np.concatenate(self.actions).astype(np.float64).std(axis=0)
        found = {
            name: [d for d in entries if spread[d] >= max(STILL, LIVELY * spread[entries].max())]
            for name, entries in groups(self.spec).items()
        }
        return {name: entries for name, entries in found.items() if entries}

    @cached_property
    def reach(self) -> Float64:
        """(A,) the expert's largest command, per entry."""
        return np.asarray(np.abs(np.concatenate(self.actions)).max(axis=0), np.float64)


def groups(spec: ActionSpec) -> dict[str, list[int]]:
    """The entries of an action that belong together, by name."""
    motion = list(range(spec.dim - (spec.gripper != "none")))
    if spec.control == "joint":
        named = {"joints": motion}
    elif spec.rotation == "none":
        named = {"translation": motion}
    else:
        named = {"translation": motion[:3], "rotation": motion[3:]}
    return named | ({"gripper": [spec.dim - 1]} if spec.gripper != "none" else {})


class Reading(NamedTuple):
    """What the answers would be without a fault."""

    topic: str
    """Where the fault lies: picture, orientation, chunk, axes; empty for the answers as given."""
    fault: str
    """As one sentence."""
    fix: str
    answers: Float64
    """(N, H, A)"""
    stride: int = 1
    """Control steps between two actions of a chunk."""
    shift: int = 0
    """Control steps from the moment of asking to the first action."""

    @property
    def offsets(self) -> Ints:
        return self.shift + self.stride * np.arange(self.answers.shape[1])


# Agreement


def agreements(reading: Reading, moments: Moments) -> dict[str, Agreement]:
    """How each group's answers agree with the expert, the first `SCORED` steps of the chunks."""
    answers, offsets = reading.answers[:, :SCORED], reading.offsets[:SCORED]
    return _agreements(answers, moments.wanted(offsets), moments)


def _agreements(answers: Float64, wanted: Float64, moments: Moments) -> dict[str, Agreement]:
    found = {}
    for name, entries in moments.live.items():
        pairs = [correlation(answers[..., d], wanted[..., d]) for d in entries]
        influence = np.mean([series for _, series in pairs], axis=0)
        found[name] = _agreement(float(np.mean([r for r, _ in pairs])), influence, moments.episode)
    return found


def correlation(given: Float64, expert: Float64) -> tuple[float, Float64]:
    """Of two (N, H) tables where the second is known (not NaN), and the influence (N,) of each row on it."""
    known = np.isfinite(expert)
    x, a = np.zeros_like(expert), np.zeros_like(expert)
    x[known], a[known] = (_standardised(table[known][:, None])[:, 0] for table in (given, expert))
    weight = len(expert) / max(1, known.sum())
    r = float((x * a).sum() * weight / len(expert))
    return r, (x * a - r * (x**2 + a**2) / 2).sum(axis=1) * weight


def _agreement(r: float, influence: Float64, episode: Ints) -> Agreement:
    """With Fisher's interval, whose width comes from the influence."""
    if (half := _margin(influence, episode, CONFIDENCE)) == np.inf:
        return Agreement(r, -1.0, 1.0, influence)
    near = float(np.clip(r, -0.999, 0.999))
    low, high = (float(np.tanh(np.arctanh(near) + side * half / (1 - near**2))) for side in (-1, 1))
    return Agreement(r, min(r, low), max(r, high), influence)


def _margin(influence: Float64, episode: Ints, confidence: float) -> float:
    """How far a mean with that influence may be off; infinite below four independent moments."""
    from scipy.special import stdtrit

    lag = _lag_one(influence, episode)
    independent = max(len(influence) * (1 - lag) / (1 + lag), len(np.unique(episode)))
    if independent < 4:
        return float("inf")
    return float(stdtrit(independent - 1, (1 + confidence) / 2) * influence.std() / np.sqrt(independent))


def correlations(answers: Float64, wanted: Float64) -> Float64:
    """(A, A): of entry d of the answers with entry e of the expert, over all known steps; 0 where one is constant."""
    known = np.isfinite(wanted).all(axis=-1)
    if known.sum() < 2:
        return np.zeros((wanted.shape[-1],) * 2)
    given, expert = _standardised(answers[known]), _standardised(wanted[known])
    return given.T @ expert / len(given)


def _standardised(columns: Float64) -> Float64:
    centred = columns - columns.mean(axis=0)
    spread = centred.std(axis=0)
    moves = spread > 1e-9 * (1 + np.abs(columns).max(axis=0))
    scaled: Float64 = np.where(moves, centred / np.where(moves, spread, 1.0), 0.0)
    return scaled


def _lag_one(series: Float64, episode: Ints) -> float:
    """Autocorrelation from one moment to the next of the same episode, at least 0 and below 1."""
    if len(series) < 3:
        return 0.99
    z = _standardised(series[:, None])[:, 0]
    same = episode[1:] == episode[:-1]
    return float(np.clip((z[1:] * z[:-1])[same].sum() / max(1, same.sum()), 0.0, 0.99))


# Which fault


def named(given: Reading, others: Sequence[Reading], moments: Moments) -> list[Reading]:
    """The readings that explain what is wrong, best first; none when the answers as given are as good as any.

    After the best one come those that cannot be told from it.
    """
    before = agreements(given, moments)
    better = [
        (reading, after)
        for reading in others
        if explains(before, after := agreements(reading, moments), moments.episode)
    ]
    if not better:
        return []
    better.sort(key=lambda pair: overall(pair[1]), reverse=True)
    _, best = better[0]
    return [reading for reading, after in better if all(after[name].r > old.r - TIE for name, old in best.items())]


def explains(before: Mapping[str, Agreement], after: Mapping[str, Agreement], episode: Ints) -> bool:
    """Some group agrees with the expert only after, and none that agreed before does certainly less."""
    gains = [name for name in before if after[name].alike and _gains(before[name], after[name], episode)]
    losses = [name for name in before if before[name].alike and _gains(after[name], before[name], episode)]
    return bool(gains) and not losses


def _gains(old: Agreement, new: Agreement, episode: Ints) -> bool:
    """The correlation is larger by `FAR` at least, and certainly larger."""
    gain = new.r - old.r
    apart = new.low > old.high or gain > _margin(new.influence - old.influence, episode, CONFIDENCE_GAIN)
    return gain >= FAR and apart


def overall(found: Mapping[str, Agreement]) -> float:
    """One number to rank readings by; the sign of the gripper is another question."""
    return float(np.mean([abs(a.r) if name == "gripper" else a.r for name, a in found.items()])) if found else 0.0


def promising(given: Reading, reading: Reading, moments: Moments) -> bool:
    """Worth asking at more moments: some group seems to agree better, whether or not that is certain yet."""
    before, after = agreements(given, moments), agreements(reading, moments)
    return any(after[name].r >= before[name].r + FAR / 2 and after[name].r >= ALIKE for name in before)


def resembles(found: Mapping[str, Agreement]) -> bool:
    """The motion is the expert's, beyond accident. The gripper alone says little: it closes once."""
    return any(agreement.related for name, agreement in found.items() if name != "gripper")


# Readings that need no other question


def answer_readings(given: Reading, moments: Moments) -> list[Reading]:
    """The answers in another order: of the chunk, of the axes, of a quaternion."""
    readings = [*_chunk_readings(given.answers), *_quaternion_readings(given.answers, moments.spec)]
    found = (axes_reading(given, moments), held_reading(given, moments))
    return [*readings, *(reading for reading in found if reading is not None)]


def _chunk_readings(answers: Float64) -> list[Reading]:
    asked, length, dim = answers.shape
    if length == 1:
        return []
    flat = answers.reshape(asked, dim, length).transpose(0, 2, 1)
    check = "compare the first and the last action of a chunk with the training data"
    early = f"the first action is the one for {length // 2} steps"
    return [
        Reading("chunk", "the actions of a chunk come last first", f"reverse them; {check}", answers[:, ::-1]),
        Reading(
            "chunk", "the chunk is laid out by entry instead of by action", "reshape to (A, H) and transpose", flat
        ),
        *(
            Reading(
                "chunk",
                f"an action of the chunk stands for {k} control steps",
                "the rate differs; resample",
                answers,
                k,
            )
            for k in (2, 4)
        ),
        Reading("chunk", f"{early} ago", "drop the actions of the past from the chunk", answers, shift=-(length // 2)),
        Reading("chunk", f"{early} ahead", "the chunk's beginning is cut off", answers, shift=length // 2),
    ]


def _quaternion_readings(answers: Float64, spec: ActionSpec) -> list[Reading]:
    """The answered rotation as it was before its quaternion was read in another order."""
    from scipy.spatial.transform import Rotation

    if spec.rotation != "axis_angle" or spec.control != "delta_pose" or spec.scale_rad == 0:
        return []
    turns = Rotation.from_rotvec(answers[..., 3:6].reshape(-1, 3) * spec.scale_rad).as_quat()
    readings = []
    for roll, fault in ((1, "w x y z is read as x y z w"), (-1, "x y z w is read as w x y z")):
        turned = Rotation.from_quat(np.roll(turns, roll, axis=1)).as_rotvec() / spec.scale_rad
        undone = answers.copy()
        undone[..., 3:6] = turned.reshape(*answers.shape[:2], 3)
        fix = "reorder the quaternion before it becomes an action"
        readings.append(Reading("rotation", f"the quaternion of the answered rotation: {fault}", fix, undone))
    return readings


def axes_reading(given: Reading, moments: Moments) -> Reading | None:
    """The answers with the axes of translation and rotation exchanged or reversed as fits the expert best.

    Only where the sizes fit then as well: a random function of the state correlates with an expert by accident.
    """
    answers, wanted = given.answers[:, :SCORED], moments.wanted(given.offsets[:SCORED])
    table, undone, said = correlations(answers, wanted), given.answers.copy(), []
    for name, entries in groups(moments.spec).items():
        if len(entries) != 3 or name not in moments.live:
            continue
        live = moments.live[name]
        order, signs = _best_axes(table[np.ix_(entries, entries)], [entries.index(d) for d in live])
        moved = given.answers[..., [entries[i] for i in order]] * signs
        known = np.isfinite(wanted).all(axis=-1)
        sizes = moved[:, :SCORED][known].std(axis=0) / np.maximum(1e-9, wanted[known][:, entries].std(axis=0))
        fits = all(1 / SCALE <= sizes[entries.index(d)] <= SCALE for d in live)
        if (order, signs.tolist()) != ((0, 1, 2), [1, 1, 1]) and fits:
            undone[..., entries] = moved
            terms = [("-" if sign < 0 else "") + "xyz"[i] for i, sign in zip(order, signs, strict=True)]
            said.append(f"{name} ({', '.join(terms)})")
    if not said:
        return None
    fault = f"the expert's x, y, z are its {' and its '.join(said)}: another frame, order or sign of the axes"
    return Reading("axes", fault, f"convert to the frame {moments.spec.frame!r} in the adapter", undone)


def _best_axes(table: Float64, live: Sequence[int]) -> tuple[tuple[int, ...], Float64]:
    """The signed permutation of three axes that agrees best on the live ones; the plainest of equals."""

    def value(order: tuple[int, ...]) -> float:
        moved = sum(i != place for place, i in enumerate(order))
        return float(sum(abs(table[order[place], place]) for place in live)) - 1e-6 * moved

    order = max(itertools.permutations(range(3)), key=value)
    signs = [float(np.sign(table[order[place], place])) if place in live else 1.0 for place in range(3)]
    return order, np.array([sign or 1.0 for sign in signs])


# Faults of size, sign and length


class Fault(NamedTuple):
    """One thing that is wrong."""

    topic: str
    detail: str
    fix: str


def size_faults(reading: Reading, moments: Moments) -> list[Fault]:
    """Entries that follow the expert, but many times too large or too small, or off by a constant."""
    answers, wanted = reading.answers[:, :SCORED], moments.wanted(reading.offsets[:SCORED])
    known = np.isfinite(wanted).all(axis=-1)
    given, expert = answers[known], wanted[known]
    scales, shifts = [], []
    for name, entries in moments.live.items():
        for d in entries if name != "gripper" else []:
            if not _agreement(*correlation(answers[..., d], wanted[..., d]), moments.episode).related:
                continue
            scale = float(given[:, d].std() / expert[:, d].std())
            shift = float(given[:, d].mean() - scale * expert[:, d].mean()) / (max(1.0, scale) * moments.reach[d])
            label = f"{name} {entry_name(moments.spec, d)}"
            scales += [f"{label} x {scale:.3g}"] if not 1 / SCALE <= scale <= SCALE else []
            shifts += [f"{label} {shift:+.2f}"] if abs(shift) > OFFSET else []
    fix = "un-normalise with the statistics the model was trained with (dataset, quantiles or min/max), and only once"
    found = []
    if scales:
        found.append(f"follows the expert, but at another scale: {', '.join(scales)}")
    if shifts:
        found.append(f"follows the expert, but off by a constant (in its largest command): {', '.join(shifts)}")
    return [Fault("un-normalisation", "; ".join(found), fix)] if found else []


def entry_name(spec: ActionSpec, entry: int) -> str:
    """x, y, z where an entry has such a name, its number elsewhere."""
    return "xyz"[entry % 3] if spec.control != "joint" and entry < 6 else str(entry)


def gripper_faults(reading: Reading, moments: Moments) -> list[Fault]:
    """A gripper that does the opposite of the expert's, or cannot say one of its two commands."""
    found = agreements(reading, moments).get("gripper")
    if found is None:
        return []
    signs = {"close_positive": "+1 closes", "close_negative": "+1 opens"}[moments.spec.gripper]
    if found.high <= -ALIKE:
        detail = f"sign reversed: it opens where the expert closes, agreement {found}; here {signs}"
        return [Fault("gripper", detail, "negate the gripper entry")]
    if not found.alike:
        return []
    answers = reading.answers[:, :SCORED, -1]
    wanted = moments.wanted(reading.offsets[:SCORED])[..., -1]
    known, middle = np.isfinite(wanted), _middle(moments)
    high, low = (float(np.median(answers[known & side])) for side in (wanted > middle, wanted <= middle))
    if low < middle < high:
        return []
    detail = (
        f"follows the expert but answers {low:.2f} and {high:.2f} for its two commands; here {signs}, -1 the opposite"
    )
    return [Fault("gripper", detail, "map its range to -1..1, for example 2 g - 1 for a gripper in 0..1")]


def _middle(moments: Moments) -> float:
    commands = np.concatenate(moments.actions)[:, -1]
    return float(commands.min() + commands.max()) / 2


def sound_length(reading: Reading, moments: Moments) -> int:
    """How many actions of a chunk come before the first that is certainly worse than repeating the chunk's first."""
    length = len(reading.offsets)
    first = reading._replace(answers=reading.answers[:, :1])
    if reading.topic == "chunk" or not resembles(agreements(first, moments)):
        return length
    for h in range(1, length):
        wanted = moments.wanted(np.array([h]))
        planned, held = (_agreements(reading.answers[:, [k]], wanted, moments) for k in (h, 0))
        if explains(planned, held, moments.episode):
            return h
    return length


def held_reading(given: Reading, moments: Moments) -> Reading | None:
    """The chunk's first action in place of those that are worse than it; None when there are none."""
    length = len(given.offsets)
    if (sound := sound_length(given, moments)) == length:
        return None
    held = np.concatenate([given.answers[:, :sound], np.repeat(given.answers[:, :1], length - sound, axis=1)], axis=1)
    said = f"of the {length} actions of a chunk, those from number {sound + 1} on are worse than repeating the first"
    fix = f"cut the chunk to the {sound} actions the model was trained to predict (spec.chunk, --execute)"
    return Reading("chunk", said, fix, held)


def magnitudes(given: Reading, moments: Moments) -> str:
    """How large the answers are beside the expert's, as words."""
    expert = np.concatenate(moments.actions).astype(np.float64)
    ratios = [
        f"{name} x {np.abs(given.answers[..., entries]).mean() / max(1e-9, np.abs(expert[:, entries]).mean()):.2g}"
        for name, entries in moments.live.items()
    ]
    return f"mean size beside the expert's: {', '.join(ratios)}"
