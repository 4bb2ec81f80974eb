"""Where a pixel of the original picture lies in the model's input, and back.

ONE box convention everywhere: float xyxy, exclusive right and bottom edge, in pixels of the upright original. Pixel
(0, 0) covers the square from 0 to 1, so a point p of the original lies at p · scale + offset in the input – for every
resize policy, which is what makes the way back exact.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cliploc.errors import InputError
from cliploc.values import FloatArray, Floats, Interpolation, ResizePolicy

FAINTEST = 1e-3  # least weight of a window, at its edge: where it is alone, its map counts whole
MAX_ASPECT_RATIO = 50.0  # beyond it, `crop` would resize to an enormous picture and `pad` to a line
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_Side: TypeAlias = tuple[int, float, int]  # of an input: its length, the scale there, and the offset
PAD_COLOUR = (124, 116, 104)  # ImageNet's mean: close to zero in any tower's normalised space


@dataclass(frozen=True)
class Sampling:
    """How maps `[P, h, w]` are sampled over an input: a map over the input is `rows @ map @ columns.T`."""

    rows: Tensor  # [H, h] weights of a mean; all 0 where no map lies
    columns: Tensor  # [W, w], as `rows`

    def over_input(self, maps: Tensor) -> Tensor:
        """`[P, H, W]`; the smallest value of each map where none lies."""
        down, across = _covered(self.rows), _covered(self.columns)
        made = _sampled_by(self.rows[down], maps, self.columns[across])
        size = len(maps), len(self.rows), len(self.columns)
        if made.shape == size:
            return made
        filled = made.amin(dim=(1, 2), keepdim=True).expand(size).clone()
        filled[:, down, across] = made
        return filled


@dataclass(frozen=True)
class Frame:
    """How one original picture was laid onto one model input."""

    original_hw: tuple[int, int]  # height and width of the upright original, in pixels
    input_hw: tuple[int, int]  # height and width of the model input
    resized_wh: tuple[int, int]  # size the whole picture was resized to, before it was cropped or padded
    offset_xy: tuple[int, int]  # where the resized picture's corner lies in the input; negative when cropped

    @classmethod
    def fit(cls, policy: ResizePolicy, original_hw: tuple[int, int], input_hw: tuple[int, int]) -> Self:
        """Lays a picture onto an input: "squash", "crop" (CLIP's), "crop-floor" (transformers' rounding) or "pad"."""
        (height, width), (in_height, in_width) = original_hw, input_hw
        if policy == "squash":
            return cls(original_hw, input_hw, (in_width, in_height), (0, 0))
        _check_sides(original_hw, f"the {policy!r} policy", "use the squash policy")
        ratios = (in_height / height, in_width / width)
        scale = min(ratios) if policy == "pad" else max(ratios)
        # As torchvision's Resize: the side that decides is exact, the other truncated. One division only, as there:
        # width · (in_height / height) is a pixel short where the quotient is rounded down.
        resized_w = in_width if scale == ratios[1] else max(1, int(in_height * width / height))
        resized_h = in_height if scale == ratios[0] else max(1, int(in_width * height / width))
        margins = ((resized_w - in_width) / 2.0, (resized_h - in_height) / 2.0)  # on each side; below 0 to pad
        x, y = (math.floor(margin) if policy == "crop-floor" else round(margin) for margin in margins)
        return cls(original_hw, input_hw, (resized_w, resized_h), (-x, -y))

    @classmethod
    def windows(cls, original_hw: tuple[int, int], input_hw: tuple[int, int], multiple: float) -> tuple[Self, ...]:
        """Lays parts of a picture, whose shorter side is `multiple` inputs, half an input apart: `window_starts`."""
        (height, width), (in_height, in_width) = original_hw, input_hw
        _check_sides(original_hw, "windows", "leave --windows out")
        scale = multiple * max(in_height / height, in_width / width)
        resized_w, resized_h = max(in_width, round(width * scale)), max(in_height, round(height * scale))
        lefts = window_starts(resized_w, in_width, -(-in_width // 2))
        tops = window_starts(resized_h, in_height, -(-in_height // 2))
        resized = resized_w, resized_h
        return tuple(cls(original_hw, input_hw, resized, (-left, -top)) for top in tops for left in lefts)

    @property
    def scale_xy(self) -> tuple[float, float]:
        """Input pixels per original pixel, along x and y."""
        return self.resized_wh[0] / self.original_hw[1], self.resized_wh[1] / self.original_hw[0]

    @property
    def visible_xyxy(self) -> tuple[int, int, int, int]:
        """The part of the input that shows the picture, in input pixels."""
        (in_height, in_width), (x, y), (w, h) = self.input_hw, self.offset_xy, self.resized_wh
        return max(x, 0), max(y, 0), min(x + w, in_width), min(y + h, in_height)

    def to_input(self, xyxy: npt.ArrayLike) -> Floats:
        """Boxes `[n, 4]` in original pixels → input pixels (not clipped)."""
        scale, offset = np.array(self.scale_xy * 2), np.array(self.offset_xy * 2)
        boxes: Floats = np.asarray(xyxy, dtype=np.float64).reshape(-1, 4) * scale + offset
        return boxes

    def to_original(self, xyxy: npt.ArrayLike, clip: bool = True) -> Floats:
        """Boxes `[n, 4]` in input pixels → original pixels, clipped to the picture unless told not to."""
        scale, offset = np.array(self.scale_xy * 2), np.array(self.offset_xy * 2)
        boxes: Floats = (np.asarray(xyxy, dtype=np.float64).reshape(-1, 4) - offset) / scale
        if clip:
            height, width = self.original_hw
            boxes = boxes.clip(0, np.array([width, height, width, height]))
        return boxes

    def apply(self, image: Image.Image, interpolation: Interpolation = "bicubic") -> Image.Image:
        """The model's input as a picture: resized (antialiased), then cropped or padded."""
        same = image.size == self.resized_wh
        resized = image if same else image.resize(self.resized_wh, RESAMPLING[interpolation])
        (in_height, in_width), (x, y) = self.input_hw, self.offset_xy
        if (x, y) == (0, 0) and resized.size == (in_width, in_height):
            return resized
        if x <= 0 and y <= 0 and x + resized.width >= in_width and y + resized.height >= in_height:
            return resized.crop((-x, -y, -x + in_width, -y + in_height))
        canvas = Image.new("RGB", (in_width, in_height), PAD_COLOUR)
        canvas.paste(resized, (x, y))
        return canvas

    def map_to_frame(self, maps: Tensor, target: Self) -> Tensor:
        """Maps `[P, h, w]` over this input → over another frame's input of the same picture, bilinear."""
        sx, sy = (a / b for a, b in zip(self.scale_xy, target.scale_xy, strict=True))
        ox = self.offset_xy[0] - target.offset_xy[0] * sx
        oy = self.offset_xy[1] - target.offset_xy[1] * sy
        return _resample(maps, self.input_hw, target.input_hw, (sx, sy), (ox, oy))

    def stitch(self, windows: Sequence[Self], maps: Tensor, *, fading: bool = False) -> Tensor:
        """Maps of windows `[W, P, h, w]`, any grid → `[P, H, W]` over this input, their mean; see `sampling`."""
        return self.sampling(windows, maps[0], fading=fading).over_input(tiled(windows, maps))

    def sampling(self, windows: Sequence[Self], like: Tensor, *, fading: bool = False) -> Sampling:
        """How maps `[…, h, w]` of windows beside each other (`tiled`) are sampled over this input, with their mean.

        If windows are `fading`, their weight falls from their middle to their edge, so that no seam is seen there.
        """
        first, (lefts, tops) = windows[0], _rows_and_columns(windows)
        sides = []
        for axis, starts in ((1, tops), (0, lefts)):
            cells, points = self.input_hw[1 - axis], like.shape[-1 - axis]
            weights, total = like.new_zeros(cells, len(starts), points), like.new_zeros(cells, 1)
            for number, at in enumerate(starts):
                window = replace(first, offset_xy=(0, at) if axis else (at, 0))
                begin, part = _sampling(self, window, axis, cells, points)
                here = slice(begin, begin + len(part))
                share = like.new_ones(len(part), 1)
                if fading:  # 1 in the window's middle, nearly 0 at its edges
                    places = torch.arange(cells) + 0.5 - self.offset_xy[axis]
                    within = places * (window.scale_xy[axis] / self.scale_xy[axis]) + at  # pixels of the window
                    fall = (1 - (2 * within / window.input_hw[1 - axis] - 1).abs()).clamp(min=FAINTEST)
                    share = fall[here, None].to(like)
                weights[here, number] = part.to(like) * share
                total[here] += share
            sides.append(weights.flatten(1) / torch.where(total > 0, total, 1))  # the mean where windows overlap
        return Sampling(*sides)

    def sampling_of_whole(self, seen: Self, like: Tensor) -> Sampling:
        """How maps `[…, h, w]` over another input with the whole picture are sampled over what this one shows of it."""
        x0, y0, x1, y1 = self.visible_xyxy
        sides = []
        for axis, first, end in ((1, y0, y1), (0, x0, x1)):
            cells, points = self.input_hw[1 - axis], like.shape[-1 - axis]
            weights = like.new_zeros(cells, points)
            weights[first:end] = _sampling(self, seen, axis, cells, points, beyond=True)[1].to(like)[first:end]
            sides.append(weights)
        return Sampling(*sides)

    def over_picture(self, longest: int) -> Self:
        """What this input shows, as an input without padding, at the picture's resolution up to `longest` pixels."""
        x0, y0, x1, y1 = self.to_original([0, 0, self.input_hw[1], self.input_hw[0]])[0].tolist()
        height, width = self.original_hw
        scale = min(1.0, longest / max(x1 - x0, y1 - y0))
        resized_w, resized_h = max(1, round(width * scale)), max(1, round(height * scale))
        left, top = round(x0 * resized_w / width), round(y0 * resized_h / height)
        in_width = min(longest, max(1, round(x1 * resized_w / width) - left))
        in_height = min(longest, max(1, round(y1 * resized_h / height) - top))
        return type(self)(self.original_hw, (in_height, in_width), (resized_w, resized_h), (-left, -top))

    def map_to_original(self, maps: Tensor) -> Tensor:
        """Maps `[P, h, w]` over this input, any grid → `[P, H, W]` over the original; zero where it was cropped."""
        return self.map_to_picture(maps, self.original_hw)

    def map_to_picture(self, maps: Tensor, hw: tuple[int, int]) -> Tensor:
        """As `map_to_original`, with the whole picture at another height and width, whatever its aspect ratio."""
        height, width = hw
        shrink_x, shrink_y = self.original_hw[1] / width, self.original_hw[0] / height
        scale_xy = (self.scale_xy[0] * shrink_x, self.scale_xy[1] * shrink_y)
        full = _resample(maps, self.input_hw, hw, scale_xy, self.offset_xy)
        x0, y0, x1, y1 = self.to_original([0, 0, self.input_hw[1], self.input_hw[0]])[0].tolist()
        if (x0, y0, x1, y1) == (0, 0, *self.original_hw[::-1]):
            return full
        x0, y0, x1, y1 = x0 / shrink_x, y0 / shrink_y, x1 / shrink_x, y1 / shrink_y
        centres_x = torch.arange(width, dtype=torch.float32, device=full.device) + 0.5
        centres_y = torch.arange(height, dtype=torch.float32, device=full.device) + 0.5
        inside = ((centres_y >= y0) & (centres_y <= y1))[:, None] & ((centres_x >= x0) & (centres_x <= x1))[None]
        result: Tensor = full * inside  # [P, H, W]
        return result


def tiled(windows: Sequence[Frame], maps: Tensor) -> Tensor:
    """Maps `[W, P, h, w]` of the windows of a picture, beside each other as these lie: `[P, rows · h, columns · w]`."""
    lefts, tops = _rows_and_columns(windows)
    beside = maps.reshape(len(tops), len(lefts), *maps.shape[1:]).permute(2, 0, 3, 1, 4)  # [P, rows, h, columns, w]
    return beside.flatten(3).flatten(1, 2)


def _rows_and_columns(windows: Sequence[Frame]) -> tuple[list[int], list[int]]:
    """The offsets along x and along y of the windows of one call of `Frame.windows`."""
    lefts, tops = (sorted({window.offset_xy[axis] for window in windows}, reverse=True) for axis in (0, 1))
    return lefts, tops


def _covered(weights: Tensor) -> slice:
    """The places of a side where something lies, by weights `[n, points]`."""
    covered = (weights != 0).any(dim=1).nonzero()
    return slice(int(covered[0]), int(covered[-1]) + 1)


def _sampled_by(rows: Tensor, maps: Tensor, columns: Tensor) -> Tensor:
    """`rows @ map @ columns.T` of each map: `[n, h]`, `[P, h, w]` and `[m, w]` → `[P, n, m]`."""
    made, across = maps.new_empty(len(maps), len(rows), len(columns)), columns.T.contiguous()
    for part, out in zip(maps, made, strict=True):  # each alone: the same whatever else
        torch.mm(rows, part @ across, out=out)
    return made


class Mosaic:
    """The mean of windows' maps where they overlap, over an input; only the sum is held, so windows can be let go."""

    def __init__(self, frame: Frame, hw: tuple[int, int]) -> None:
        self._frame, self._hw = frame, hw
        self._total: Tensor | None = None  # [h, w, P]: so that one product of matrices samples all P along a side
        self._covered: Tensor | None = None  # [h, w], by how many windows

    def add(self, window: Frame, maps: Tensor) -> None:
        """Adds the maps `[P, h, w]` over a window of the same picture, any grid."""
        height, width = self._hw
        if self._total is None or self._covered is None:
            self._total, self._covered = maps.new_zeros(height, width, len(maps)), maps.new_zeros(height, width)
        top, rows = _sampling(self._frame, window, 1, height, maps.shape[-2])
        left, columns = _sampling(self._frame, window, 0, width, maps.shape[-1])
        if len(rows) and len(columns):  # else outside of what this input shows
            here = slice(top, top + len(rows)), slice(left, left + len(columns))
            places = maps.permute(1, 2, 0)  # [h, w, P]; a CNN's features lie so in memory
            on_rows = (rows.to(maps) @ places.flatten(1)).reshape(-1, *places.shape[1:])
            self._total[here] += columns.to(maps) @ on_rows
            self._covered[here] += 1

    def mean_feature(self) -> Tensor:
        """`[P, h, w]`, once there is a window; each channel's mean where none lies: its least value would stand out."""
        assert self._total is not None
        assert self._covered is not None
        mean = (self._total / self._covered.clamp(min=1)[..., None]).permute(2, 0, 1)
        covered = self._covered > 0
        return torch.where(covered, mean, mean[:, covered].mean(dim=1)[:, None, None])


def _sampling(
    frame: Frame, window: Frame, axis: int, cells: int, points: int, beyond: bool = False
) -> tuple[int, Tensor]:
    """How a window's side samples a grid, bilinear: first cell, weights `[n, points]`; `beyond`: of all cells."""
    base, of_window = (
        (of_frame.input_hw[1 - axis], of_frame.scale_xy[axis], of_frame.offset_xy[axis]) for of_frame in (frame, window)
    )
    return _sampled(base, of_window, cells, points, beyond)


@lru_cache(maxsize=1024)  # pictures of one size have the same windows
def _sampled(base: _Side, of_window: _Side, cells: int, points: int, beyond: bool) -> tuple[int, Tensor]:
    (side, scale, offset), (window_side, window_scale, at) = base, of_window
    cell = side / cells  # pixels of the input
    low, high = ((edge - at) / window_scale * scale + offset for edge in (0, window_side))
    first, end = max(0, math.ceil(low / cell - 0.5)), min(cells, math.floor(high / cell - 0.5) + 1)
    if beyond:
        first, end = 0, cells
    if first >= end:
        return first, torch.zeros(0, points)
    ratio = window_scale / scale
    pixels = at + ((np.arange(first, end) + 0.5) * cell - offset) * ratio  # of the window
    places = (pixels * points / window_side - 0.5).clip(0, points - 1)
    lower = places.astype(np.int64)
    upper, cell_number = np.minimum(lower + 1, points - 1), np.arange(len(places))
    weights = np.zeros((len(places), points))
    weights[cell_number, lower] = 1 - (places - lower)
    weights[cell_number, upper] += places - lower
    return first, torch.from_numpy(weights.astype(np.float32))


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side: every `stride` pixels, the last one pushed inwards, so that it ends there."""
    count = max(length - window + stride - 1, 0) // stride + 1
    return [min(number * stride, length - window) for number in range(count)]


def _check_sides(original_hw: tuple[int, int], what: str, way_out: str) -> None:
    height, width = original_hw
    if max(height / width, width / height) > MAX_ASPECT_RATIO:
        raise InputError(
            f"a picture of {width}×{height} is too narrow for {what} (expected at most {MAX_ASPECT_RATIO:.0f}:1): cut "
            f"it into pieces or {way_out}"
        )


def _resample(
    maps: Tensor,
    source_hw: tuple[int, int],
    target_hw: tuple[int, int],
    scale_xy: tuple[float, float],
    offset_xy: tuple[float, float],
) -> Tensor:
    """Samples maps `[P, h, w]` over source_hw at a target's pixel centres; source = target · scale + offset."""
    (source_h, source_w), (target_h, target_w) = source_hw, target_hw
    full = math.isclose(target_w * scale_xy[0], source_w) and math.isclose(target_h * scale_xy[1], source_h)
    if offset_xy == (0, 0) and full:
        return F.interpolate(maps[None], size=target_hw, mode="bilinear", align_corners=False)[0]
    device = maps.device
    x = (torch.arange(target_w, device=device, dtype=torch.float32) + 0.5) * scale_xy[0] + offset_xy[0]  # source pixels
    y = (torch.arange(target_h, device=device, dtype=torch.float32) + 0.5) * scale_xy[1] + offset_xy[1]
    grid_y, grid_x = torch.meshgrid(y * (2 / source_h) - 1, x * (2 / source_w) - 1, indexing="ij")
    places = torch.stack([grid_x, grid_y], dim=-1)[None].to(maps.dtype)  # [1, H, W, 2] in −1..1
    return F.grid_sample(maps[None], places, mode="bilinear", padding_mode="border", align_corners=False)[0]


def padding_least(maps: Tensor, frames: Sequence[Frame], flipped: bool) -> Tensor:
    """Maps `[B, P, h, w]` on a grid over the input, with the smallest value inside the picture on its padding."""
    if all(frame.resized_wh == frame.input_hw[::-1] for frame in frames):
        return maps
    height, width = maps.shape[-2:]
    filled = maps.clone()
    for row, frame in zip(filled, frames, strict=True):
        x0, y0, x1, y1 = frame.visible_xyxy
        ys, xs = ((torch.arange(n, device=maps.device) + 0.5) / n for n in (height, width))
        input_h, input_w = frame.input_hw
        inside = ((ys * input_h > y0) & (ys * input_h < y1))[:, None] & ((xs * input_w > x0) & (xs * input_w < x1))
        inside = inside.flip(-1) if flipped else inside  # [h, w]: whether the centre of a cell is in the picture
        if inside.any():
            row[:, ~inside] = row[:, inside].amin(dim=1, keepdim=True)
    return filled


def iou_matrix(a_xyxy: npt.ArrayLike, b_xyxy: npt.ArrayLike) -> FloatArray:
    """Intersection over union of every box of `a [n, 4]` with every box of `b [m, 4]` → `[n, m]`; 0 for empty boxes."""
    a = np.asarray(a_xyxy, dtype=np.float64).reshape(-1, 1, 4)
    b = np.asarray(b_xyxy, dtype=np.float64).reshape(1, -1, 4)
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    intersection = (high - low).clip(min=0).prod(-1)  # [n, m]
    area_a, area_b = ((box[..., 2:] - box[..., :2]).clip(min=0).prod(-1) for box in (a, b))
    union = area_a + area_b - intersection
    ratio: FloatArray = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0).astype(np.float32)
    return ratio
