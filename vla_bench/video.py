"""Films of episodes: an MP4 with both cameras, and a strip of stills.

Painting happens after the episode, from states the environment kept: nothing the policy sees or the simulator does can
change, and an episode nobody wants to watch costs nothing.
"""

from __future__ import annotations

import errno
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vla_bench.errors import UsageError, unwritable
from vla_bench.grounding.overlay import HEAT, LINE
from vla_bench.store.files import sync, sync_folder
from vla_bench.types import Episode, Frame, Image

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

FOLDER = "videos"
NOT_FILMED = "Not filmed. "
"""How the message of an episode begins whose film could not be made."""
EVERY = 4  # control steps per frame: 5 frames a second at 20 Hz; painting is what a film costs
STRIP_STILLS = 8
_SIDE = 256  # pixels; smaller pictures are enlarged, each pixel to a square, as long as they stay below it
_BAND = 52  # pixels below the pictures: two lines of text and the timeline
_INK, _PAPER, _DIM = (235, 235, 235), (24, 26, 30), (110, 115, 125)
_GREEN, _RED, _BLUE = (72, 187, 120), (229, 83, 83), (99, 160, 255)


@dataclass(frozen=True)
class Caption:
    """What is written under the pictures of one episode."""

    instruction: str
    success: bool
    steps: int
    chunk_starts: Sequence[int]
    """Control steps at which the policy was asked."""
    control_hz: float
    attention: bool = False
    """Whether the pictures show attention and region, which the caption then names."""


def stem(episode: Episode) -> str:
    """The name of the episode's files, without ending."""
    perturbation = f"_{episode.perturbation}" if episode.perturbation else ""
    return f"{episode.task}_trial{episode.trial}_seed{episode.seed}{perturbation}"


def chunk_starts(executed: Sequence[int]) -> list[int]:
    """The control steps at which the policy was asked, from the actions played per inference."""
    return [0, *np.cumsum(executed)[:-1].tolist()] if executed else []


def write_film(path: Path, frames: Iterable[Frame], about: Caption) -> None:
    """Write the film to `path` (.mp4) and its strip of stills beside it (.png). Raises UsageError for a full disk."""
    path.parent.mkdir(exist_ok=True)
    chosen = np.linspace(0, -(-about.steps // EVERY), STRIP_STILLS).round().astype(int).tolist()  # the last frame too
    try:
        pictures = enumerate(_encode(path, (compose(frame, about) for frame in frames), about.control_hz / EVERY))
        stills = [picture for index, picture in pictures if index in chosen]
        _save_strip(path.with_suffix(".png"), stills)
        for file in (path, path.with_suffix(".png")):
            sync(file)
        sync_folder(path.parent)  # the row that names the film is on the disk only after this
    except BaseException as error:
        for half in (path, path.with_suffix(".png")):
            if half.is_file():
                half.unlink()
        if not isinstance(error, OSError):
            raise
        if error.errno in (None, errno.EPIPE):  # of ffmpeg, which does not say why; its whole command follows
            reason = str(error).splitlines()[0]
            raise UsageError(f"Could not write to {path} ({reason}): free some space, or --video none.") from error
        raise unwritable(path, error, ", or --video none") from error


def compose(frame: Frame, about: Caption) -> Image:
    """uint8 (H, W, 3): the cameras side by side, the caption below. H and W are even, as H.264 wants."""
    from PIL import Image as Picture
    from PIL import ImageDraw

    times = max(1, _SIDE // max(image.shape[0] for image in frame.images.values()))
    pictures = [image.repeat(times, 0).repeat(times, 1) for image in frame.images.values()]
    height = max(picture.shape[0] for picture in pictures)
    width = max(320, sum(picture.shape[1] for picture in pictures))
    canvas = Picture.new("RGB", (width + width % 2, height + height % 2 + _BAND), _PAPER)
    left = 0
    for picture in pictures:
        canvas.paste(Picture.fromarray(picture), (left, 0))
        left += picture.shape[1]
    _write(ImageDraw.Draw(canvas), frame.step, about, canvas.width, canvas.height - _BAND)
    return np.asarray(canvas)


def _write(draw: ImageDraw, step: int, about: Caption, width: int, top: int) -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(13)
    over = step >= about.steps
    verdict, colour = ("success", _GREEN) if about.success else ("failure", _RED)
    lines = textwrap.wrap(about.instruction, width=max(20, width // 7)) or [""]
    draw.text((8, top + 4), lines[0] + (" ..." if len(lines) > 1 else ""), _INK, font)
    said = f"step {step}/{about.steps}   {step / about.control_hz:.1f} s"
    draw.text((8, top + 22), said, _DIM, font)
    if about.attention:
        left = 14 + draw.textlength(said, font)
        for word, ink in (("attention", HEAT), ("region", LINE)):
            draw.text((left, top + 22), word, ink, font)
            left += draw.textlength(f"{word}  ", font)
    if over:
        draw.text((width - 60, top + 22), verdict, colour, font)
    _timeline(draw, step, about, width, top + _BAND - 9)


def _timeline(draw: ImageDraw, step: int, about: Caption, width: int, y: int) -> None:
    """A bar that fills with the episode; a tick wherever the policy was asked."""
    left, right = 8, width - 8

    def x(at: int) -> float:
        return left + (right - left) * at / max(1, about.steps)

    draw.rectangle((left, y, right, y + 3), fill=(60, 64, 72))
    draw.rectangle((left, y, x(min(step, about.steps)), y + 3), fill=_BLUE)
    if len(about.chunk_starts) <= (right - left) / 3:  # closer ticks would only be a grey band
        for start in about.chunk_starts:
            draw.line((x(start), y - 3, x(start), y + 5), fill=_INK)


def _encode(path: Path, frames: Iterator[Image], fps: float) -> Iterator[Image]:
    """Every frame, once it is in the film."""
    import imageio_ffmpeg  # type: ignore[import-untyped]

    writer = None
    try:
        for frame in frames:
            if writer is None:
                size = (frame.shape[1], frame.shape[0])
                writer = imageio_ffmpeg.write_frames(
                    str(path), size, fps=fps, quality=6, macro_block_size=2, ffmpeg_log_level="quiet"
                )
                writer.send(None)
            writer.send(np.ascontiguousarray(frame))
            yield frame
    finally:
        if writer is not None:
            writer.close()


def _save_strip(path: Path, stills: Sequence[Image]) -> None:
    """The stills side by side, half their size."""
    from PIL import Image as Picture

    strip = Picture.fromarray(np.concatenate(stills, axis=1))
    strip.resize((strip.width // 2, strip.height // 2)).save(path)
