"""Draws a `Localization`: heat and boxes on the photograph, for one name or several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from cliploc.boxes import hot_levels
from cliploc.boxes.masks import ResizedMasks
from cliploc.boxes.outlines import outlines
from cliploc.draw import captions
from cliploc.draw.colours import INK, PAPER, Colour, name_colour
from cliploc.errors import UsageError
from cliploc.options import Share, check_value
from cliploc.values import FloatArray

if TYPE_CHECKING:
    from cliploc.localization import Localization

OPACITY = 0.5  # so that the thing can be seen under the hottest places
MAX_SIDE = 1600  # of a sheet of panels
MOST_PANELS = 40  # names on a sheet; with thousands it would exceed the size limit of JPEG
STRIP = 256  # rows of a picture that are painted together
HEAT_SIDE = 1024  # a map is smooth: beyond this size it is interpolated in 8 bits without loss
CELL_SIDES = (240, 640)  # shortest width and longest side of one panel's picture
BOX_COLOUR: Colour = (255, 255, 255)  # of a single name: white is not in the palette of the heat
LINE_COLOUR: Colour = (252, 168, 13)  # of a single name's line at the threshold: in the palette of the heat


def draw_overlay(
    result: Localization,
    names: Sequence[str] | None = None,
    opacity: float = OPACITY,
    heatmap: bool | None = None,
    boxes: bool = True,
    caption: bool = True,
    masks: bool = False,
) -> Image.Image:
    """Heat as a shade and a line at τ, masks and boxes, at the picture's size; several names by colours."""
    check_value("opacity", Share, opacity)
    if isinstance(names, str):  # which Python reads as a list of letters
        raise UsageError(f"expected a list of names, got the single text {names!r}: write [{names!r}]")
    if unknown := [name for name in names or () if name not in result.names]:
        raise UsageError(f"{unknown[0]!r} was not asked for, only {', '.join(result.names)}: choose one of these")
    indices = [i for i, name in enumerate(result.names) if names is None or name in names]
    return draw_names(result, indices, opacity, heatmap=heatmap, boxes=boxes, caption=caption, masks=masks)


def panels(result: Localization, masks: bool = False) -> Image.Image:
    """A sheet for a picture: photograph, a panel a name (the best `MOST_PANELS`), last all boxes; 1,600 pixels wide."""
    chosen = _paneled(result)
    together = len(chosen) > 1 and bool(result.found.any())
    columns, cell_wh = grid_of(result.image.size, 1 + len(chosen) + together)
    small = scaled(result, cell_wh)
    width, height = result.image.size
    file = file_name(result)
    found, total = int(result.found.sum()), len(result.names)
    some = f"{len(chosen)} of {found} names found are shown, of {total} asked for"
    left_out = [] if len(chosen) == total else [some if found else f"none of {total} names found"]
    cells = [Panel(small.image, file, " · ".join([f"{width}×{height}", *left_out, *result.notes]))]
    for index in chosen:
        chip = name_colour(index) if together else None
        drawn = draw_names(small, [index], masks=masks)
        cells.append(Panel(drawn, result.names[index], verdict(result, index), chip))
    if together:
        everything = draw_names(small, chosen, heatmap=False, masks=masks)
        cells.append(Panel(everything, "all names" if not left_out else "these names", f"{found} of {total} found"))
    return sheet_of(cells, columns, run_line(result))


def _paneled(result: Localization) -> list[int]:
    """The names that get a panel: all in their order, or if they are too many the best of those found."""
    if len(result.names) <= MOST_PANELS:
        return list(range(len(result.names)))
    best = np.zeros(len(result.names))
    np.maximum.at(best, result.boxes.label, result.boxes.score)
    order = np.argsort(-best, kind="stable")
    return [int(i) for i in order if result.found[i]][:MOST_PANELS]


def verdict(result: Localization, index: int) -> str:
    """The outcome for one name in a line: "found · cosine 0.271 · presence 0.93", or "unsure" and the reason."""
    found = bool(result.found[index])
    words: list[str] = [result.verdict(index)]
    if np.isfinite(result.scores[index]):
        words.append(f"cosine {result.scores[index]:.3f}")
    if found and result.presence_of(index) is not None:
        words.append(f"presence {result.presence_text(index)}")
    if not found and result.reasons[index]:
        words.append(str(result.reasons[index]))
    return " · ".join(words)


def file_name(result: Localization) -> str:
    """The picture's file without its folder."""
    return result.source.replace("\\", "/").rsplit("/", 1)[-1]


def run_line(result: Localization) -> str:
    """Method, model, threshold, and whether presence is uncalibrated: "CAM · mini · τ 0.40"; "" if not known."""
    words = [result.method, result.model]
    if result.threshold is not None:
        words.append("τ auto" if result.threshold == "auto" else f"τ {result.threshold:.2f}")
    if result.presence_rule == "bank":
        words.append("presence uncalibrated")
    return " · ".join(filter(None, words))


def heatmap_alt(result: Localization, index: int, method: str = "", masks: bool = False) -> str:
    """The alternative text of one name's heatmap or masks: file, name and boxes, and the method where it is given."""
    boxes = result.boxes.xyxy[result.boxes.label == index]
    where = "; ".join("box from {:.0f}, {:.0f} to {:.0f}, {:.0f}".format(*box) for box in boxes) or "no box"
    by = f" by {method}" if method else ""
    what = "masks" if masks else "heatmap"
    return f"{file_name(result)} with the {what} for “{captions.clean(result.names[index])}”{by}: {where}"


def scaled(result: Localization, size_wh: tuple[int, int]) -> Localization:
    """The result scaled to another size: picture, frame and boxes; the maps are shared."""
    width, height = size_wh
    old_h, old_w = result.frame.original_hw  # the picture may be a smaller copy already
    if size_wh == result.image.size == (old_w, old_h):
        return result
    enlarged = min(width, height) >= 4 * min(result.image.size)  # keep pixels sharp when a tiny picture is enlarged
    resampling = Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
    ratio = np.array([width / old_w, height / old_h] * 2, dtype=np.float32)
    return replace(
        result,
        image=result.image.convert("RGB").resize(size_wh, resampling, reducing_gap=3.0),
        frame=replace(result.frame, original_hw=(height, width)),
        boxes=replace(result.boxes, xyxy=result.boxes.xyxy * ratio),
        judged=None if result.judged is None else result.judged.scaled(ratio),
        mask_source=None if result.mask_source is None else ResizedMasks(result),
    )


def fit_within(size_wh: tuple[int, int], max_side: int) -> tuple[int, int]:
    """The size of a picture after reducing its longest side to at most this; no side becomes 0."""
    ratio = min(1.0, max_side / max(size_wh))
    return max(1, round(size_wh[0] * ratio)), max(1, round(size_wh[1] * ratio))


# -------------------------------------------------------------------------------------------------- on the picture
def draw_names(
    result: Localization,
    indices: Sequence[int],
    opacity: float = OPACITY,
    *,
    heatmap: bool | None = None,
    boxes: bool = True,
    caption: bool = False,
    masks: bool = False,
    dense: float = 1.0,
) -> Image.Image:
    """Like `draw_overlay`, for the names with these indices; `dense` pixels of the picture are one of the page."""
    image = result.image.convert("RGB")  # a copy
    single = len(indices) == 1
    heatmap = not masks if heatmap is None else heatmap
    if heatmap and single:
        (index,) = indices
        heat = _heat(result, index)  # [H', W']
        levels = np.asarray(cv2.convertScaleAbs(heat, alpha=255), np.uint8)
        paint_map(image, levels, opacity if result.found[index] else opacity / 2)
        outline(image, heat, _level(result, index), LINE_COLOUR, dense)
    elif heatmap:
        image = _paint_heats(image, result, [i for i in indices if result.found[i]], opacity)
    colours = {i: BOX_COLOUR if single and not masks else name_colour(i) for i in indices}
    if masks:
        _paint_masks(image, result, colours, opacity)
    plates = (
        paint_boxes(image, result, colours, dense) if boxes else captions.Plates(image, captions.text_size(image.size))
    )
    if caption and (run := run_line(result)):
        name = [result.names[i] + ("" if result.found[i] else f": {result.verdict(i)}") for i in indices if single]
        small = [_heat(result, index, 64) for index in indices[:MOST_PANELS]] or [np.zeros((1, 1), np.float32)]
        hottest = np.max(small, axis=0, initial=0, keepdims=False)  # [h, w]
        ratio = np.array(hottest.shape[::-1] * 2) / np.array(image.size * 2)

        def mean_heat(rectangle: captions.Rectangle) -> float:
            x0, y0, x1, y1 = (np.array(rectangle) * ratio).round().astype(int)
            x0, y0 = min(x0, hottest.shape[1] - 1), min(y0, hottest.shape[0] - 1)  # of a picture much wider than high
            return float(hottest[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)].mean())

        plates.resized(0.8).note(" · ".join([*name, run]), mean_heat)
    return image


def paint_boxes(
    image: Image.Image, result: Localization, colours: Mapping[int, Colour], dense: float = 1.0
) -> captions.Plates:
    """Draws the boxes of these names (index → colour) with their labels, best on top; dashed where they are unsure."""
    line = captions.line_width(image.size, dense)
    boxes = result.visible_boxes
    order = [i for i in range(len(boxes)) if int(boxes.label[i]) in colours]
    order.sort(key=lambda i: -float(boxes.score[i]))
    rectangles = {i: captions.to_rectangle(boxes.xyxy[i], image.size) for i in order}
    plates = captions.Plates(image, captions.text_size(image.size, dense), list(rectangles.values()))
    for i in reversed(order):
        dash = 0 if i < len(result.boxes) else 4 * line
        captions.draw_box(image, rectangles[i], colours[int(boxes.label[i])], line, dash=dash)
    for i in order:
        label, doubt = int(boxes.label[i]), "" if i < len(result.boxes) else "?"
        plates.add(rectangles[i], result.names[label] + doubt, f" {boxes.score[i]:.2f}", colours[label], line)
    return plates


def _heat(result: Localization, index: int, side: int = HEAT_SIDE) -> FloatArray:
    """The heat of a name over the picture, 0–1, `[H', W']`, at most this number of pixels per side."""
    width, height = fit_within(result.image.size, side)
    frame = replace(result.frame, original_hw=(height, width))
    heat: FloatArray
    if frame.resized_wh == frame.input_hw[::-1]:  # as below, in a fifth of the time
        heat = np.asarray(cv2.resize(result.maps[index], (width, height)), np.float32)
    else:
        import torch

        heat = frame.map_to_original(torch.from_numpy(result.maps[[index]])).numpy()[0]
    return heat.clip(0, 1, out=heat)


def paint_map(image: Image.Image, heat: npt.NDArray[np.uint8], opacity: float = OPACITY) -> None:
    """Draws a map `[h, w]` onto a picture: dimmed where it is cold, in the heat's colours where it is hot."""
    if not heat.any():
        return
    levels = Image.fromarray(heat).resize(image.size, Image.Resampling.BILINEAR)
    # Tables of Pillow are many times faster than to look up each pixel in an array.
    colours, covers = captions.heat_palette(opacity)
    mask = levels.point(covers.tolist())
    levels.putpalette(colours.tobytes())
    for rows in _strips((0, 0, *image.size)):
        image.paste(levels.crop(rows).convert("RGB"), rows, mask.crop(rows))


def _strips(box: tuple[int, int, int, int]) -> Iterator[tuple[int, int, int, int]]:
    """A box in strips of rows, so that what is drawn there is never as large as the picture."""
    x0, y0, x1, y1 = box
    return ((x0, y, x1, min(y + STRIP, y1)) for y in range(y0, y1, STRIP))


def _level(result: Localization, index: int) -> float | None:
    """The heat at the threshold of a name's boxes; None if the threshold is not known or nothing is hot."""
    x0, y0, x1, y1 = result.frame.visible_xyxy
    maps = result.maps[[index], y0:y1, x0:x1]
    if result.threshold is None or not result.found[index] or not maps.any():
        return None
    return float(hot_levels(maps, result.threshold)[0])


def _away(heat: FloatArray, level: float) -> FloatArray:
    """How many pixels away, along the slope, the heat is at this level: `[H, W]`."""
    # As `np.gradient`, in a quarter of its time, with the slope halved at the edges.
    right, down = (
        cv2.Sobel(heat, cv2.CV_32F, *axis, ksize=1, scale=0.5, borderType=cv2.BORDER_REPLICATE)
        for axis in ((1, 0), (0, 1))
    )
    right[:, [0, -1]] *= 2
    down[[0, -1]] *= 2
    away: FloatArray = np.abs(heat - level)
    away /= np.maximum(cv2.magnitude(right, down), np.float32(1e-4))
    return away


def outline(image: Image.Image, heat: FloatArray, level: float | None, colour: Colour, dense: float = 1.0) -> None:
    """Draws the line at a level onto a picture: bright, between two dark ones, so that it can be seen on anything."""
    if level is None:
        return
    scale = max(heat.shape) / max(image.size)
    width = max(1.0, max(1.6, 0.6 * captions.line_width(image.size, dense)) * scale)
    away = _away(heat, level)
    for ink, wide, strength in ((INK, 2 * width + 0.5, 0.7), (colour, width, 1.0)):
        end, full = wide / 2 + 0.5, strength * 255  # the line's opacity falls to 0 within the last pixel
        line = cv2.convertScaleAbs(away.clip(end - 1, end), alpha=-full, beta=end * full)
        mask = Image.fromarray(line).resize(image.size, Image.Resampling.BILINEAR)
        if (extent := mask.getbbox()) is not None:
            for rows in _strips(extent):
                here = rows[2] - rows[0], rows[3] - rows[1]
                image.paste(Image.new("RGB", here, ink), rows, mask.crop(rows))  # faster than a plain colour


def _paint_heats(image: Image.Image, result: Localization, indices: Sequence[int], opacity: float) -> Image.Image:
    if not indices:
        return image
    # The hottest name sets the colour; a high power blends colours only where two names are about equally hot.
    hottest = _heat(result, indices[0])  # [H', W']
    total, planes = np.zeros_like(hottest), [np.zeros_like(hottest) for _ in range(3)]
    for index in indices:
        heat = _heat(result, index)
        np.maximum(hottest, heat, out=hottest)
        for _ in range(3):
            heat *= heat  # to the power of 8
        heat += np.float32(1e-12)
        total += heat
        for plane, ink in zip(planes, name_colour(index), strict=True):
            plane += heat * np.float32(ink)
    levels = cv2.convertScaleAbs(hottest, alpha=255)
    if levels.any():
        veil, shade, covers = captions.heat_cover(opacity)
        share = np.divide(cv2.LUT(levels, shade), total, out=total)
        for plane, ink in zip(planes, captions.VEIL, strict=True):
            plane *= share
            plane += cv2.LUT(levels, veil * np.float32(ink))
        cover = cv2.convertScaleAbs(cv2.merge(planes)), cv2.LUT(levels, covers)
        colour, alpha = (Image.fromarray(layer).resize(image.size, Image.Resampling.BILINEAR) for layer in cover)
        image = Image.composite(colour, image, alpha)
    for index in indices:
        outline(image, _heat(result, index), _level(result, index), name_colour(index))
    return image


def _paint_masks(image: Image.Image, result: Localization, colours: Mapping[int, Colour], opacity: float) -> None:
    """Draws the masks of these names' boxes (index → colour): all shades first, so that outlines stay visible."""
    height, width = result.frame.original_hw
    scale = np.array([image.width / width, image.height / height])  # the picture may be a smaller copy
    shapes: list[tuple[Colour, list[npt.NDArray[np.float64]]]] = []
    chosen = result
    if result.mask_source is None:  # whose masks are not kept, so that fewer are made
        chosen = replace(result, boxes=result.boxes.where([int(label) in colours for label in result.boxes.label]))
    for index, mask in chosen.box_masks():
        colour = colours.get(int(chosen.boxes.label[index]))
        if colour is None:
            continue
        shade = Image.fromarray(mask.astype(np.uint8) * round(opacity * 255)).resize(image.size)
        if (extent := shade.getbbox()) is not None:
            image.paste(colour, extent, shade.crop(extent))
        shapes.append((colour, [ring.points * scale for ring in outlines(mask)]))
    draw = ImageDraw.Draw(image)
    line = max(1, round(0.6 * captions.line_width(image.size)))
    for wide, inked in ((line + 2, True), (line, False)):
        for colour, rings in shapes:
            for points in rings:
                corners = [tuple(point) for point in np.concatenate([points, points[:2]]).tolist()]
                draw.line(corners, INK if inked else colour, wide, joint="curve")


# ------------------------------------------------------------------------------------------------------- the sheet
@dataclass(frozen=True)
class Panel:
    """A picture with its caption: a title, optionally after a square of its colour, and lines below."""

    image: Image.Image
    title: str
    line: str
    chip: Colour | None = None


GAP = 16
TITLE_SIZE, LINE_SIZE, LINE_HEIGHT = 22, 17, 21
CAPTION = 8 + TITLE_SIZE + 8 + 2 * LINE_HEIGHT  # of two lines
MOST_LINES = 8
GREY: Colour = (80, 80, 80)


def grid_of(size_wh: tuple[int, int], count: int, unit: int = 1) -> tuple[int, tuple[int, int]]:
    """The columns, a multiple of `unit`, and the picture size that show `count` panels largest on a sheet."""
    width, height = size_wh
    narrowest, longest = CELL_SIDES
    best = (0.0, unit)
    for columns in range(unit, count + 1, unit):
        rows = -(-count // columns)
        room_w = min(longest, (MAX_SIDE - GAP) / columns - GAP)
        room_h = min(longest, (MAX_SIDE - GAP) / rows - GAP - CAPTION)
        if room_w >= narrowest or columns == unit:
            # Of equal sizes the one with fewer columns.
            best = max(best, (min(room_w / width, room_h / height), columns), key=lambda layout: round(layout[0], 4))
    scale, columns = best
    scale = max(scale, 160 / max(size_wh))  # with many names the sheet becomes longer, so that panels stay legible
    return columns, (max(1, round(width * scale)), max(1, round(height * scale)))


def sheet_of(cells: Sequence[Panel], columns: int, run: str) -> Image.Image:
    """The sheet: the cells in rows, and the text `run` below them."""
    width, height = cells[0].image.size
    cell_w = max(CELL_SIDES[0], width)
    texts = [_wrapped(cell.line, cell_w) for cell in cells]
    cell_h = height + CAPTION + max(0, max(map(len, texts)) - 2) * LINE_HEIGHT
    rows = -(-len(cells) // columns)
    sheet_w = GAP + columns * (cell_w + GAP)
    below = _wrapped(run, sheet_w - 2 * GAP)
    sheet_h = GAP + rows * (cell_h + GAP) + len(below) * LINE_HEIGHT + GAP * bool(below)
    sheet = Image.new("RGB", (sheet_w, sheet_h), PAPER)
    draw = ImageDraw.Draw(sheet)

    def write(lines: Sequence[str], x: int, y: int, ink: Colour) -> None:
        for row, words in enumerate(lines):
            font = captions.caption_font(words, LINE_SIZE)
            draw.text((x, y + row * LINE_HEIGHT), words, fill=ink, font=font)

    write(below, GAP, sheet_h - GAP - len(below) * LINE_HEIGHT, INK)
    for number, (cell, lines) in enumerate(zip(cells, texts, strict=True)):
        x, y = GAP + number % columns * (cell_w + GAP), GAP + number // columns * (cell_h + GAP)
        sheet.paste(cell.image, (x + (cell_w - width) // 2, y))
        left, top = x, y + height + 8
        if cell.chip:
            draw.rectangle((x, top + 2, x + TITLE_SIZE - 5, top + TITLE_SIZE - 3), fill=cell.chip, outline=INK)
            left += TITLE_SIZE + 4
        title = captions.clean(cell.title)
        font = captions.caption_font(title, TITLE_SIZE)
        draw.text((left, top), captions.shorten(title, font, cell_w + x - left), fill=INK, font=font)
        write(lines, x, top + TITLE_SIZE + 8, GREY)
    return sheet


def _wrapped(text: str, width: int) -> list[str]:
    text = captions.clean(text)
    return captions.wrap(text, captions.caption_font(text, LINE_SIZE), width, MOST_LINES)
