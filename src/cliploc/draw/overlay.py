"""Draws a `Localization` on its photograph (heat and boxes, for one name or several), and label maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from cliploc.boxes import hot_levels
from cliploc.boxes.masks import ResizedMasks, outlines
from cliploc.draw import captions
from cliploc.draw.colours import COLORMAP, INK, PAPER, Colour, Cover, as_hex, heat_colours, heat_cover, name_colour
from cliploc.draw.sheet import MAX_SIDE, Panel, Sheet, grid_of
from cliploc.errors import UsageError
from cliploc.options import Colormap, Share, check_value
from cliploc.values import BoolArray, ByteArray, FloatArray

if TYPE_CHECKING:
    from cliploc.localization import Localization

MOST = 255  # names that a palette can hold, besides the background
CLASS_OPACITY = 0.55  # of the shade of a name; a light photograph must show through, and colours stay distinct
LEAST_SIDE = 320  # of the drawing's width, so that the legend can be read below tiny photographs
GAP, SIZE, LINE = 12, 16, 24  # of the legend
GREY: Colour = (80, 80, 80)
Labels = npt.NDArray[np.integer[Any]]


def label_picture(labels: npt.NDArray[np.uint16], names: int) -> Image.Image:
    """A label map `[H, W]` as palette picture in the names' colours; grey of 16 bits with more than 255 names."""
    if names > MOST:
        return Image.fromarray(labels.astype(np.uint16))
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette([0, 0, 0, *(channel for index in range(names) for channel in name_colour(index))])
    return picture


def label_legend(names: Sequence[str]) -> dict[str, Any]:
    """Which value of a label map is which name, and its colour."""
    background = {"value": 0, "name": None, "colour": "#000000"}
    values = [{"value": i + 1, "name": name, "colour": as_hex(name_colour(i))} for i, name in enumerate(names)]
    return {"labels": [background, *values]}


def draw_segments(image: Image.Image, labels: Labels, names: Sequence[str], run: str = "") -> Image.Image:
    """Each name's pixels in its colour, and below a legend with their shares, and the run; at most 1,600 pixels."""
    width, height = fit_within(image.size, MAX_SIDE)
    scale = max(1, LEAST_SIDE // max(width, height))  # a tiny photo in whole multiples
    width, height = width * scale, height * scale
    rows, columns = (
        ((np.arange(new) + 0.5) * (old / new)).astype(np.intp)
        for new, old in zip((height, width), labels.shape, strict=True)
    )
    scaled = labels[rows][:, columns]  # [height, width]
    resampling = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    photo = np.asarray(image.convert("RGB").resize((width, height), resampling, reducing_gap=3.0), np.float32)
    colours: list[Colour] = [(0, 0, 0), *(name_colour(index) for index in range(len(names) - 1))]
    drawn = photo * (1 - CLASS_OPACITY) + np.array(colours, np.float32)[scaled] * CLASS_OPACITY
    # Borders are lines of two pixels: one whose right or lower neighbour has another label, and that neighbour.
    across, down = scaled[:, 1:] != scaled[:, :-1], scaled[1:] != scaled[:-1]
    for half, border in ((drawn[:, 1:], across), (drawn[:, :-1], across), (drawn[1:], down), (drawn[:-1], down)):
        half[border] = PAPER
    shares = np.bincount(labels.ravel(), minlength=len(names)) / labels.size
    order = [int(value) for value in np.argsort(-shares, kind="stable") if shares[value]]
    entries = [(colours[value], names[value], f" {100 * shares[value]:.1f} %") for value in order]
    absent = [name for name, share in zip(names[1:], shares[1:], strict=True) if not share]
    remarks = [f"no pixel: {', '.join(absent)}"] if absent else []
    return _with_legend(Image.fromarray(drawn.round().astype(np.uint8)), entries, [*remarks, *filter(None, [run])])


def _with_legend(
    drawing: Image.Image, entries: Sequence[tuple[Colour, str, str]], remarks: Sequence[str]
) -> Image.Image:
    """The drawing, and below it squares of colours with a name and a share each, then remarks."""
    width = max(LEAST_SIDE, drawing.width)
    placed: list[tuple[int, int, Colour, str]] = []
    x, row = GAP, 0
    for colour, name, keep in entries:
        name = captions.clean(name)
        font = captions.font_for(name, SIZE)
        words = captions.shorten(name, font, width - 2 * GAP - LINE, keep)
        wide = LINE + round(font.getlength(words)) + 2 * GAP
        if x > GAP and x + wide - GAP > width:
            x, row = GAP, row + 1
        placed.append((x, row, colour, words))
        x += wide
    lines = [
        line
        for text in map(captions.clean, remarks)
        for line in captions.wrap(text, captions.font_for(text, SIZE - 2), width - 2 * GAP, 3)
    ]
    top = drawing.height + GAP
    sheet = Image.new("RGB", (width, top + (row + 1 + len(lines)) * LINE + GAP // 2), PAPER)
    sheet.paste(drawing, ((width - drawing.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    for x, at, colour, words in placed:
        middle = top + at * LINE + LINE // 2
        draw.rectangle((x, middle - SIZE // 2, x + SIZE, middle + SIZE // 2), fill=colour, outline=INK)
        draw.text((x + LINE, middle), words, fill=INK, font=captions.font_for(words, SIZE), anchor="lm")
    for number, words in enumerate(lines, start=row + 1):
        middle = top + number * LINE + LINE // 2
        draw.text((GAP, middle), words, fill=GREY, font=captions.font_for(words, SIZE - 2), anchor="lm")
    return sheet


# ------------------------------------------------------------------------------------------------------------- overlays
OPACITY = 0.5  # so that the thing can be seen under the hottest places
MOST_PANELS = 40  # names on a sheet; with thousands it would exceed the size limit of JPEG
HEAT_SIDE = 1024  # a map is smooth: beyond this size it is interpolated in 8 bits without loss
BOX_COLOUR: Colour = (255, 255, 255)  # of a single name: white is not in the palette of the heat
FAINT = 0.05  # boxes that score less are drawn only where a name has no better one


def draw_overlay(
    result: Localization,
    names: Sequence[str] | None = None,
    opacity: float = OPACITY,
    heatmap: bool | None = None,
    boxes: bool = True,
    caption: bool = True,
    masks: bool = False,
    colormap: Colormap = COLORMAP,
) -> Image.Image:
    """Heat as a shade and a line at τ, masks and boxes, at the picture's size; several names by colours."""
    check_value("opacity", Share, opacity)
    check_value("colormap", Colormap, colormap)
    if isinstance(names, str):  # which Python reads as a list of letters
        raise UsageError(f"expected a list of names, got the single text {names!r}: write [{names!r}]")
    if unknown := [name for name in names or () if name not in result.names]:
        raise UsageError(f"{unknown[0]!r} was not asked for, only {', '.join(result.names)}: choose one of these")
    indices = [i for i, name in enumerate(result.names) if names is None or name in names]
    return draw_names(
        result, indices, opacity, heatmap=heatmap, boxes=boxes, caption=caption, masks=masks, colormap=colormap
    )


def sheet(result: Localization, masks: bool = False, colormap: Colormap = COLORMAP) -> Sheet:
    """A picture's sheet: photograph, a panel a name (the best `MOST_PANELS`), last all boxes; of one name its panel."""
    chosen = _paneled(result)
    single, together = len(result.names) == 1, len(chosen) > 1 and bool(result.found.any())
    columns, cell_wh = grid_of(result.image.size, (not single) + len(chosen) + together)
    small = scaled(result, cell_wh)
    width, height = result.image.size
    file = file_name(result)
    found, total = int(result.found.sum()), len(result.names)
    some = f"{len(chosen)} of {found} names found are shown, of {total} asked for"
    left_out = [] if len(chosen) == total else [some if found else f"none of {total} names found"]
    cells = [Panel(small.image, file, " · ".join([f"{width}×{height}", *left_out, *result.notes]))]
    for index in chosen:
        drawn, boxes = drawn_parts(small, [index], masks, colormap=colormap)
        chip = name_colour(index) if together else None
        cells.append(Panel(drawn, result.names[index], verdict(result, index), chip, boxes))
    if together:
        drawn, boxes = drawn_parts(small, chosen, masks, False, colormap)
        title = "all names" if not left_out else "these names"
        cells.append(Panel(drawn, title, f"{found} of {total} found", None, boxes))
    return Sheet(cells[single:], columns, run_line(result), None if masks or not chosen else colormap)


def drawn_parts(
    result: Localization,
    indices: Sequence[int],
    masks: bool = False,
    heatmap: bool | None = None,
    colormap: Colormap = COLORMAP,
) -> tuple[Image.Image, list[captions.DrawnBox]]:
    """A picture with heat or masks of some names, and their boxes."""
    drawn = draw_names(result, indices, heatmap=heatmap, boxes=False, masks=masks, colormap=colormap)
    return drawn, boxes_to_draw(result, box_colours(indices, masks))


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
    """Method, model, threshold, and what is uncalibrated: "CAM · mini · τ 0.40"; "" if not known."""
    words = [result.method, result.model]
    if result.threshold is not None:
        words.append("τ auto" if result.threshold == "auto" else f"τ {result.threshold:.2f}")
    guessed = {"presence": result.presence_rule == "bank", "scores": result.calibrated is None}
    if result.method and any(guessed.values()):
        words.append(f"{' and '.join(what for what, guess in guessed.items() if guess)} uncalibrated")
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
    colormap: Colormap = COLORMAP,
) -> Image.Image:
    """Like `draw_overlay`, for the names with these indices."""
    image = result.image.convert("RGB")  # a copy
    single = len(indices) == 1
    if not masks if heatmap is None else heatmap:
        shown = [i for i in indices if single or result.found[i]]
        heats = {i: _heat(result, i) for i in shown}
        strength = opacity / 2 if single and not result.found[shown[0]] else opacity
        of_heat = heat_colours(colormap)
        covers = [heat_cover(strength, of_heat if single else (name_colour(i),)) for i in shown]
        _paint(image, [_levels(heat) for heat in heats.values()], covers)
        for i, heat in heats.items():
            outline(image, heat, _level(result, i), of_heat[-1] if single else name_colour(i))
    colours = box_colours(indices, masks)
    if masks:
        _paint_masks(image, result, colours, opacity)
    taken = captions.paint_boxes(image, boxes_to_draw(result, colours)) if boxes else []
    if caption and (run := run_line(result)):
        name = [result.names[i] + ("" if result.found[i] else f": {result.verdict(i)}") for i in indices if single]
        plates = captions.Plates(image, max(10, round(0.8 * captions.text_size(image.size))))
        plates.taken = taken
        plates.note(" · ".join([*name, run]))
    return image


def box_colours(indices: Sequence[int], masks: bool) -> dict[int, Colour]:
    """The colour of each name's boxes: white beside heat of a single name, else the name's."""
    return {i: BOX_COLOUR if len(indices) == 1 and not masks else name_colour(i) for i in indices}


def boxes_to_draw(result: Localization, colours: Mapping[int, Colour]) -> list[captions.DrawnBox]:
    """The boxes of these names (index → colour), best first; faint ones only if they are the best of a name found."""
    boxes, sure = result.visible_boxes, len(result.boxes)
    order = sorted(range(len(boxes)), key=lambda i: -float(boxes.score[i]))
    seen = set[int]()
    drawn = []
    for i in order:
        label, score = int(boxes.label[i]), float(boxes.score[i])
        if label in colours and (score >= FAINT or (i < sure and label not in seen)):
            chance = score if result.is_calibrated(label) else None
            xyxy = tuple(boxes.xyxy[i].tolist())
            drawn.append(captions.DrawnBox(xyxy, result.names[label], chance, colours[label], i < sure))
            seen.add(label)
    return drawn


def _heat(result: Localization, index: int) -> FloatArray:
    """The heat of a name over the picture, 0–1, `[H', W']`, at most `HEAT_SIDE` pixels per side."""
    width, height = fit_within(result.image.size, HEAT_SIDE)
    alone = replace(result, maps=result.maps[index : index + 1])
    heat: FloatArray = alone.maps_over_picture((height, width))[0]
    return heat


def heat_layer(result: Localization, index: int, opacity: float = OPACITY) -> Image.Image:
    """The heat of one name as an RGBA picture that is laid over the photograph."""
    levels = _levels(_heat(result, index))
    colours, opacities = heat_cover(opacity)
    return Image.merge("RGBA", [*Image.fromarray(colours[levels]).split(), Image.fromarray(opacities[levels])])


def _levels(heat: FloatArray) -> ByteArray:
    levels: ByteArray = (heat * 255).round().astype(np.uint8)
    return levels


def paint_map(image: Image.Image, heat: ByteArray, opacity: float = OPACITY) -> None:
    """Draws a map `[h, w]` onto a picture: dimmed where it is cold, in the heat's colours where it is hot."""
    _paint(image, [heat], [heat_cover(opacity)])


def _paint(image: Image.Image, heats: Sequence[ByteArray], covers: Sequence[Cover]) -> None:
    """Lays the covers of some maps of one size on a picture: each place has that of the hottest map."""
    if not any(heat.any() for heat in heats):
        return
    hottest = np.max(heats, axis=0)  # [h, w]
    colours, opacities = np.zeros((*hottest.shape, 3), np.uint8), np.zeros_like(hottest)
    for heat, (colour, opacity) in zip(heats, covers, strict=True):
        here = heat == hottest
        colours[here], opacities[here] = colour[heat[here]], opacity[heat[here]]
    shade, mask = (Image.fromarray(one).resize(image.size, Image.Resampling.BILINEAR) for one in (colours, opacities))
    image.paste(shade, mask=mask)


def _level(result: Localization, index: int) -> float | None:
    """The heat at the threshold of a name's boxes; None if the threshold is not known or nothing is hot."""
    x0, y0, x1, y1 = result.frame.visible_xyxy
    maps = result.maps[[index], y0:y1, x0:x1]
    if result.threshold is None or not result.found[index] or not maps.any():
        return None
    return float(hot_levels(maps, result.threshold)[0])


def outline(image: Image.Image, heat: FloatArray, level: float | None, colour: Colour) -> None:
    """Draws the line at a level of a map over the picture `[h, w]`."""
    if level is not None:
        _draw_rings(image, [(colour, heat > level)])


def _draw_rings(image: Image.Image, shapes: Sequence[tuple[Colour, BoolArray]]) -> None:
    """Draws the outlines of masks `[h, w]`: bright between two dark lines, so that they can be seen on anything."""
    draw = ImageDraw.Draw(image)
    line = max(2, round(0.6 * captions.line_width(image.size)))
    scaled_by = [(colour, mask, np.array(image.size) / mask.shape[::-1]) for colour, mask in shapes]
    rings = [(colour, ring.points * scale) for colour, mask, scale in scaled_by for ring in outlines(mask)]
    for wide, inked in ((line + 2, True), (line, False)):
        for colour, points in rings:
            corners = [tuple(point) for point in np.concatenate([points, points[:2]]).tolist()]
            draw.line(corners, INK if inked else colour, wide, joint="curve")


def _paint_masks(image: Image.Image, result: Localization, colours: Mapping[int, Colour], opacity: float) -> None:
    """Draws the masks of these names' boxes (index → colour): all shades first, so that outlines stay visible."""
    shapes: list[tuple[Colour, BoolArray]] = []
    chosen = result
    if result.mask_source is None:  # whose masks are not kept, so that fewer are made
        chosen = replace(result, boxes=result.boxes.where([int(label) in colours for label in result.boxes.label]))
    for index, mask in chosen.box_masks():
        if (colour := colours.get(int(chosen.boxes.label[index]))) is not None:
            shade = Image.fromarray(mask.astype(np.uint8) * round(opacity * 255)).resize(image.size)
            image.paste(colour, mask=shade)
            shapes.append((colour, mask))
    _draw_rings(image, shapes)
