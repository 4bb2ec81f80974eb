"""A self-contained page to look boxes through: click to drop or keep, then save the decisions as JSON."""

from __future__ import annotations

import base64
import colorsys
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from cliploc._files import write_whole
from cliploc.errors import InputError
from cliploc.images import load
from cliploc.report._html import STYLE, count, escape
from cliploc.report.exports import AnnotatedPicture

REVIEW_KIND = "cliploc review"
SIDE = 480  # longest side of the pictures in the page
JPEG_QUALITY = 78
HEIGHT = 330  # at most, of a picture on the screen

REVIEW_STYLE = """
.bar { position: sticky; top: 0; z-index: 2; background: var(--paper); border-bottom: 1px solid var(--line);
  display: flex; flex-wrap: wrap; gap: .4rem 1rem; align-items: center; padding: .6rem 0; }
.bar label { display: flex; gap: .4rem; align-items: center; }
.bar select { max-width: 11rem; font: inherit; }
.bar input { width: 8rem; }
.bar output { min-width: 2.2em; font-variant-numeric: tabular-nums; }
#state { color: var(--soft); }
code { white-space: nowrap; }
button { font: inherit; padding: .3rem .8rem; border: 1px solid var(--line); border-radius: 4px; cursor: pointer;
  background: var(--card); color: var(--ink); }
button.main { background: var(--link); color: var(--paper); border-color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.grid { display: grid; gap: 18px; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr));
  align-items: start; padding: 1rem 0 3rem; }
.picture { position: relative; margin: 0 auto; }
.picture svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
rect { fill: transparent; stroke-width: 3; vector-effect: non-scaling-stroke; cursor: pointer; }
rect.dropped { stroke-dasharray: 6 5; opacity: .45; }
rect:hover, rect.pointed { stroke-width: 6; opacity: 1; }
.boxes { list-style: none; padding: 0; margin: .4rem 0 0; display: flex; flex-wrap: wrap; gap: .3rem; }
.boxes button { font-size: .85rem; padding: .1rem .5rem; border-left: 6px solid; overflow-wrap: anywhere;
  text-align: left; }
.boxes button[aria-pressed=false] { text-decoration: line-through; opacity: .6; }
[hidden] { display: none !important; }
@media (max-width: 560px) {
  .bar { gap: .3rem .6rem; padding: .4rem 0; font-size: .9rem; }
  .bar select { max-width: 5.2rem; }
  .bar input { width: 5rem; }
  .bar button { padding: .2rem .5rem; }
}
"""

SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const kept = new Map();          // picture -> array of booleans
const shown = {label: "", score: 0};
let unsaved = false;
const grid = document.getElementById("grid");
const views = [];

function build(picture) {
  const seen = data.decided[picture.name] || {};
  kept.set(picture.name, picture.boxes.map((box) => seen[box.id] !== false));
  const figure = document.createElement("figure");
  const holder = document.createElement("div");
  holder.className = "picture";
  // However high a picture is, its row is not much higher than the others.
  holder.style.maxWidth = `${Math.round(data.height * picture.image_wh[0] / picture.image_wh[1])}px`;
  const image = new Image();
  image.alt = picture.name;
  image.loading = "lazy";
  image.width = picture.image_wh[0];
  image.height = picture.image_wh[1];
  image.src = picture.image;
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${picture.size_wh[0]} ${picture.size_wh[1]}`);
  svg.setAttribute("preserveAspectRatio", "none");
  const list = document.createElement("ul");
  list.className = "boxes";
  const parts = picture.boxes.map((box, index) => {
    const [x0, y0, x1, y1] = box.xyxy;
    const rect = document.createElementNS(SVG, "rect");
    for (const [key, value] of Object.entries({x: x0, y: y0, width: x1 - x0, height: y1 - y0}))
      rect.setAttribute(key, value);
    rect.setAttribute("stroke", data.colours[box.label]);
    const title = document.createElementNS(SVG, "title");
    title.textContent = `${data.names[box.label]} ${box.score.toFixed(2)}: click to drop or keep`;
    rect.append(title);
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.style.borderLeftColor = data.colours[box.label];
    button.textContent = `${data.names[box.label]} ${box.score.toFixed(2)}${box.group ? " · several?" : ""}`;
    if (box.group) button.title = "This box seems to go round several things.";
    for (const one of [rect, button]) one.addEventListener("click", () => toggle(picture.name, index));
    for (const [event, on] of [["pointerenter", true], ["focus", true], ["pointerleave", false], ["blur", false]])
      button.addEventListener(event, () => rect.classList.toggle("pointed", on));
    item.append(button);
    list.append(item);
    return {rect, button, item};
  });
  // Large boxes first, so that a small one within is on top and can be clicked.
  const area = (b) => (b.xyxy[2] - b.xyxy[0]) * (b.xyxy[3] - b.xyxy[1]);
  const order = picture.boxes.map((_, i) => i).sort((a, b) => area(picture.boxes[b]) - area(picture.boxes[a]));
  for (const i of order) svg.append(parts[i].rect);
  holder.append(image, svg);
  const caption = document.createElement("figcaption");
  caption.textContent = picture.name;
  figure.append(holder, caption, list);
  grid.append(figure);
  views.push({picture, figure, parts});
}
function toggle(name, index) {
  kept.get(name)[index] = !kept.get(name)[index];
  unsaved = true;
  draw();
}
function draw() {
  let pictures = 0, boxes = 0, dropped = 0;
  for (const {picture, figure, parts} of views) {
    let any = false;
    picture.boxes.forEach((box, index) => {
      const visible = (shown.label === "" || String(box.label) === shown.label) && box.score >= shown.score;
      const keep = kept.get(picture.name)[index];
      for (const one of [parts[index].rect, parts[index].item]) one.toggleAttribute("hidden", !visible);
      parts[index].rect.style.display = visible ? "" : "none";
      parts[index].rect.classList.toggle("dropped", !keep);
      parts[index].button.setAttribute("aria-pressed", keep);
      any = any || visible;
      boxes += visible;
      dropped += !keep;
    });
    figure.hidden = !any && !(shown.label === "" && shown.score === 0);
    pictures += !figure.hidden;
  }
  const count = (n, noun) => `${n} ${noun}${n === 1 ? "" : noun === "box" ? "es" : "s"}`;
  document.getElementById("state").textContent =
    `${count(pictures, "picture")}, ${count(boxes, "box")} shown; ${count(dropped, "box")} dropped`;
}
function decisions() {
  const chosen = {};
  for (const {picture} of views) {
    chosen[picture.name] = {};
    picture.boxes.forEach((box, index) => { chosen[picture.name][box.id] = kept.get(picture.name)[index]; });
  }
  return {kind: data.kind, schema_version: 1, run: data.run, decisions: chosen};
}
function setVisible(keep) {
  for (const {picture, parts} of views)
    picture.boxes.forEach((_, index) => {
      if (!parts[index].item.hidden) kept.get(picture.name)[index] = keep;
    });
  unsaved = true;
  draw();
}
data.pictures.forEach(build);
const select = document.getElementById("label");
data.names.forEach((name, index) => select.append(new Option(name, String(index))));
select.addEventListener("change", () => { shown.label = select.value; draw(); });
const score = document.getElementById("score");
score.addEventListener("input", () => {
  shown.score = Number(score.value);
  document.getElementById("score-value").textContent = shown.score.toFixed(2);
  draw();
});
document.getElementById("drop").addEventListener("click", () => setVisible(false));
document.getElementById("keep").addEventListener("click", () => setVisible(true));
document.getElementById("save").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(decisions(), null, 1)], {type: "application/json"}));
  link.download = "decisions.json";
  link.click();
  URL.revokeObjectURL(link.href);
  unsaved = false;
});
addEventListener("beforeunload", (event) => { if (unsaved) event.preventDefault(); });
draw();
"""


def write_review(
    path: Path,
    pictures: Sequence[AnnotatedPicture],
    names: Sequence[str],
    run: str,
    decided: Mapping[str, Mapping[str, bool]],
    total: int,
) -> None:
    """Writes a page with these pictures, in this order, and all that is needed to decide on their boxes.

    Args:
        path: the file.
        pictures: with all boxes, dropped ones too.
        names: of the labels.
        run: what the decisions will belong to.
        decided: picture → box → whether it is kept, of reviews before.
        total: how many pictures the run has.

    Raises:
        OSError: the file cannot be written.
    """

    def fill(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as file:
            head, tail = _page(len(pictures), total).split("@DATA@")
            file.write(head)
            facts = {
                "kind": REVIEW_KIND,
                "run": run,
                "names": list(names),
                "colours": [_colour(i) for i in range(len(names))],
                "height": HEIGHT,
                "decided": {one.name: dict(decided[one.name]) for one in pictures if one.name in decided},
            }
            file.write(_json(facts)[:-1] + ', "pictures": [')
            written = 0
            for one in pictures:
                if (record := _record(one)) is not None:
                    file.write((",\n" if written else "\n") + _json(record))
                    written += 1
            file.write("]}" + tail)

    write_whole(path, fill)


def _json(value: object) -> str:
    """Within a script element: no text may end it, or begin a comment."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def _record(picture: AnnotatedPicture) -> dict[str, Any] | None:
    """A picture that has gone since is left out."""
    try:
        image = load(picture.path, str(picture.path)).image
    except InputError:
        return None
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    boxes = zip(picture.box_ids, picture.xyxy, picture.score, picture.label, picture.groups, strict=True)
    return {
        "name": picture.name,
        "size_wh": picture.size_wh,
        "image_wh": image.size,
        "image": "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"),
        "boxes": [
            {
                "id": box_id,
                "xyxy": [round(value, 2) for value in xyxy.astype(float).tolist()],
                "score": round(float(score), 4),
                "label": int(label),
                "group": group,
            }
            for box_id, xyxy, score, label, group in boxes
        ],
    }


def _colour(index: int) -> str:
    """Hues far from each other, however many; light enough to be seen on any photograph."""
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.85, 1))
    return f"#{red:02x}{green:02x}{blue:02x}"


def _page(shown: int, total: int) -> str:
    what = f"{count(shown, 'picture')}{f' of {total:,}' if shown < total else ''}, the least certain first"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>cliploc review</title>
<style>{STYLE}{REVIEW_STYLE}</style>
</head>
<body>
<header>
<h1>Review of draft boxes</h1>
<p>{escape(what)}. Click a box, on the picture or under it, to drop it or keep it; <em>several?</em> marks one that
seems to go round several things. Save the decisions, and give the file to the same command:
<code>cliploc annotate …</code> <code>--apply decisions.json</code></p>
</header>
<main>
<div class="bar" role="group" aria-label="What is shown">
<label>Label <select id="label"><option value="">all</option></select></label>
<label>Score from <input id="score" type="range" min="0" max="1" step="0.01" value="0">
<output id="score-value">0.00</output></label>
<button type="button" id="drop">Drop shown</button>
<button type="button" id="keep">Keep shown</button>
<button type="button" id="save" class="main">Save decisions</button>
<span id="state" role="status"></span>
</div>
<div class="grid" id="grid"></div>
</main>
<script type="application/json" id="data">@DATA@</script>
<script>{SCRIPT}</script>
</body>
</html>
"""
