"use strict";
// The review editor. Boxes are drawn, moved and resized by Annotorious; what they mean, their history, the list of
// pictures and the saving are here.
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id), editor = document.querySelector(".editor");
const ROW = 68;            // height of a row of the list, as in the style sheet
const MOST_STEPS = 200;    // of the history of a picture
const LEAST = 1;           // pixels of a box
const LEAST_SHOWN = 0.05;  // chance of an unsure box on the picture; the list has all
// Selected boxes that have handles: Annotorious nests a call for each, and a thousand of them overflow the stack.
const MOST_HANDLES = 20;
const STATUS = {none: "not reviewed", reviewed: "✓ reviewed", later: "… later", skipped: "– skipped"};

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(properties))
    if (key in made && key !== "list") made[key] = value; else made.setAttribute(key, value);
  made.append(...children);
  return made;
}
const clone = (value) => JSON.parse(JSON.stringify(value));
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const hundredths = (value) => Math.round(value * 100) / 100;
const plural = (n, one, many) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

// ------------------------------------------------------------------------------------------------------------ storage
class Conflict extends Error {}
const GONE = new Error("the server does not answer: start cliploc review again");

/** The pictures of a server, which has them on its disk. */
class ServerStore {
  #sending = 0;  // letters of bodies on their way
  async entries() { return this.#answer("/pictures"); }
  async state(index) { return this.#answer(`/pictures/${index}`); }
  image(index) { return this.#of(`/images/${index}.jpg`); }
  thumbnail(index) { return this.#of(`/thumbnails/${index}.jpg`); }
  async save(index, saved) { return (await this.post(`/pictures/${index}`, saved)).revision; }
  async suggest(index, wish) { return this.post(`/pictures/${index}/suggestion`, wish); }
  async learning() { return this.#answer("/learning"); }
  async post(path, content = {}) {
    const body = JSON.stringify(content);
    this.#sending += body.length;
    try {
      // Small bodies are sent even while the page is being closed; a browser refuses more than 64 KiB of them at once.
      const keepalive = this.#sending < 60000;
      return await this.#answer(path, {method: "POST", body, keepalive, headers: {"Content-Type": "application/json"}});
    } finally {
      this.#sending -= body.length;
    }
  }
  // The server at this port may be that of another folder by now, and a browser keeps pictures.
  #of(path) { return `${path}?of=${data.folder}`; }
  async #answer(path, request = {}) {
    const response = await fetch(this.#of(path), request).catch(() => { throw GONE; });
    if ($("notice").className === "gone") tell("");  // it answers again
    const content = await response.json().catch(() => { if (response.ok) throw GONE; });  // it broke off
    if (response.status === 409 && content?.error.includes("revision")) throw new Conflict(content.error);
    if (!response.ok) throw new Error(content?.error || `the server answered ${response.status}`);
    return content;
  }
}

const store = new ServerStore();

function entryOf(picture) {
  const area = picture.size[0] * picture.size[1];
  const found = picture.boxes.map((box) => {
    const [x0, y0, x1, y1] = box.xyxy, draft = draftOf(picture, box.draft);
    return [box.label, draft?.score ?? 1, (x1 - x0) * (y1 - y0) / area, !draft || draft.unsure || isEdited(box, draft)];
  });
  const {name, size, status, revision, drawn, changed} = picture;
  const margin = data.set ? 1 - Math.max(0, ...openSuspects(picture).map((one) => one.chance)) : picture.margin;
  return {name, size, margin, status, revision, drawn, changed, found, unsure: notThere(picture, true).length};
}
const draftOf = (picture, number) => picture.drafts.find((one) => one.draft === number);
const near = (a, b) => a.every((value, i) => Math.abs(value - b[i]) < 0.02);
const isEdited = (box, draft) => !near(draft.xyxy, box.xyxy) || draft.label !== box.label || (data.masks && box.mask !== draft.mask);
const openSuspects = ({suspects, answered}) => suspects.filter((one) => !answered.includes(one.number));
const originOf = ({draft, id}) => draft ?? id;
/** The drafts that no box comes of: those that are unsure, or the dropped ones. */
function notThere(picture, unsure) {
  const there = new Set(picture.boxes.map(originOf));
  return picture.drafts.filter((one) => one.unsure === unsure && !there.has(one.draft));
}

// -------------------------------------------------------------------------------------------------------------- state
let entries = [];          // of all pictures, what the list shows
let shown = [];            // numbers of the pictures that pass the filter, in order
let current = null;        // the picture on the stage: its state, `index`, `steps`, `undone`
let annotator = null;
let selected = new Set();  // ids of boxes
let drawing = false;       // whether what the annotator says comes from us
let zoom = 1, active = 0, names = 0, heat = null;
const histories = new Map();
const pending = new Set();  // pictures with changes that are not saved yet: they stay in this page until they are

function tell(text, kind = "") {
  $("notice").textContent = text;
  $("notice").className = kind;
  $("notice").hidden = !text;
}
function saved(text, failed = false) {
  $("saved").textContent = text;
  $("saved").classList.toggle("failed", failed);
}
const labelName = (label) => data.names[label];
const boxOf = (id) => current.boxes.find((one) => one.id === id);
const chosen = () => current.boxes.filter((one) => selected.has(one.id));
const withId = (box) => ({...box, id: `box-${++names}`});
const plainBox = ({xyxy, label, draft, mask, polygons}) => {
  const box = {xyxy, label, draft};
  if (data.masks && mask) box.mask = mask;
  else if (data.masks && polygons) box.polygons = polygons;
  return box;
};
const snapshot = () => clone({boxes: current.boxes, status: current.status, answered: current.answered});
const contentOf = ({boxes, status, answered}) => JSON.stringify([boxes.map(plainBox), status, answered]);

// ------------------------------------------------------------------------------------------------------------- saving
/** Enters a change: into the history, the list, and the store. */
function commit(before, merge = "") {
  answerChanged(before);
  if (contentOf(before) === contentOf(current)) return;
  dropIsLast = false;
  const last = current.steps.at(-1);
  if (!(merge && last && last.merge === merge && Date.now() - last.time < 800)) {
    current.steps.push({...before, merge, time: Date.now()});
    if (current.steps.length > MOST_STEPS) current.steps.shift();
  } else last.time = Date.now();
  current.undone.length = 0;
  changed();
}
function changed() {
  entries[current.index] = entryOf(current);
  draw();
  drawList();
  save(current);
}
/** Says, until they are saved, which pictures are not, whatever picture is shown. */
function tellUnsaved() {
  const failed = [...pending].filter((one) => one.failed), names = failed.slice(0, 3).map((one) => one.name).join(", ");
  const text = failed.length ? `Not saved: ${plural(failed.length, "picture", "pictures")} (${names}${failed.length > 3 ? " …" : ""}): ${failed.at(-1).failed}. Your changes are in this page only: leave it open, it tries again.` : "";
  if ($("unsaved").textContent !== text) $("unsaved").textContent = text;  // a screen reader says it again otherwise
  $("unsaved").hidden = !text;
}
async function save(picture) {
  picture.unsaved = true;
  pending.add(picture);
  if (picture.saving) return;
  picture.saving = true;
  while (picture.unsaved) {
    picture.unsaved = false;
    saved("Saving …");
    try {
      const {revision, status, boxes, drawn, answered} = picture;
      picture.sent.add(contentOf(picture));
      try {
        picture.revision = await store.save(picture.index, {revision, status, boxes: boxes.map(plainBox), drawn, answered});
      } catch (error) {
        if (!(error instanceof Conflict)) throw error;
        const state = await store.state(picture.index);
        if (!picture.sent.has(contentOf(state))) { settle(picture); await reload(picture, state); return; }
        picture.revision = state.revision;  // it was saved, and only the answer was lost
        picture.unsaved = true;
        continue;
      }
      picture.sent.clear();
      entries[picture.index].revision = picture.revision;
      saved("Saved");
    } catch (error) {
      picture.saving = false;
      picture.unsaved = true;
      picture.failed = error.message;
      saved(`Not saved: ${error.message}`, true);
      tellUnsaved();
      setTimeout(() => { if (picture.unsaved) save(picture); }, 3000);
      return;
    }
  }
  settle(picture);
  askLearning();
}
/** Nothing is left to save of a picture. */
function settle(picture) {
  picture.unsaved = picture.saving = false;
  picture.failed = "";
  pending.delete(picture);
  tellUnsaved();
}
/** Somebody else saved the picture since: shows it as it is there. */
async function reload(picture, state) {
  histories.delete(picture.index);
  entries[picture.index] = entryOf({...state, changed: entries[picture.index].changed});
  drawList();
  saved("");
  tell(`${state.name} was saved in another tab or window in the meantime. The page now shows that version; your last change was not saved.`);
  if (current === picture) await open(picture.index, true);
}
addEventListener("beforeunload", (event) => { if (pending.size) event.preventDefault(); });

function undo() { if (dropIsLast) takeBackShown(); else step(current.steps, current.undone); }
function redo() { step(current.undone, current.steps); }
function step(from, to) {
  const there = from.pop();
  if (!there) return;
  to.push({...snapshot(), merge: "", time: 0});
  current.boxes = there.boxes;
  current.status = there.status;
  current.answered = there.answered;
  selected = new Set([...selected].filter((id) => boxOf(id)));
  changed();
}

// -------------------------------------------------------------------------------------------------------- one picture
let opening = 0, heading = null;  // the picture that is being opened
async function open(index, keepNotice = false) {
  takeOverNow();
  const mine = ++opening;
  heading = index;
  if (!keepNotice) tell("");
  let state, image;
  endHeat();
  const before = histories.get(index);
  try {
    state = before?.saving || before?.unsaved ? before : await store.state(index);  // what is on its way is newer
    image = element("img", {alt: state.name, src: store.image(index), draggable: false});
    await image.decode();
  } catch (error) {
    if (mine !== opening) return;
    tell(`${entries[index].name} cannot be shown: ${error.message || "its file cannot be read"}`, error === GONE ? "gone" : "");
    if (!state) { heading = null; return; }
    image = null;
  }
  if (mine !== opening) return;
  heading = null;
  // The history goes on where the picture is as it was left.
  if (before && (state === before || (before.revision === state.revision && before.drawn === state.drawn && contentOf(before) === contentOf(state)))) current = before;
  else current = {...state, changed: entries[index].changed, index, steps: [], undone: [], sent: new Set(), boxes: state.boxes.map(withId)};
  histories.set(index, current);
  if (histories.size > 50) histories.delete([...histories.values()].find((one) => !pending.has(one))?.index);
  entries[index] = entryOf(current);
  selected = new Set();
  suspect = data.set ? openSuspects(current)[0]?.number ?? null : null;
  history.replaceState(null, "", `#${index}`);
  $("name").textContent = state.name;
  mount(image);
  if (data.set) { selectSuspect(); draw(); }
  saved("");
  drawList(true);
}
function mount(image) {
  annotator?.destroy();
  annotator = null;
  $("canvas").replaceChildren();
  if (!image) return draw();
  $("canvas").append(image, element("div", {className: "tags", id: "tags", ariaHidden: "true"}));
  current.scale = current.size[0] / image.naturalWidth;
  annotator = Annotorious.createImageAnnotator(image, {style, drawingMode: "drag", userSelectAction: "EDIT"});
  const layer = annotator.element.querySelector("svg");
  layer.setAttribute("aria-label", "Boxes on the picture; the list of boxes has all of them");
  // A quick drag of a box counts as a click for Annotorious, too, which would select another one.
  layer.querySelector("g.drawing").addEventListener("pointerup", (event) => { if (dragged) event.stopPropagation(); });
  layer.removeAttribute("tabindex");  // the list of boxes and the keys do what it does
  setTool();
  annotator.state.selection.subscribe(({selected: now}) => {
    if (drawing) return;
    selected = new Set(now.map((one) => one.id));
    drawBoxes();
    drawTags();
  });
  annotator.state.store.observe(({changes}) => {
    if (drawing) return;
    for (const {newValue} of changes.updated || []) moveTag(newValue);
  });
  zoom = 1;
  fit();
  draw();
}
let labels = new Map();  // of the boxes on the picture, by their ids
function style(annotation, state) {
  const colour = data.colours[labels.get(annotation.id) ?? active];
  const on = state?.selected || selected.has(annotation.id);
  return {stroke: colour, strokeWidth: on ? 3 : 2.5, fill: colour, fillOpacity: on ? 0.18 : data.masks ? 0.25 : 0.04};
}

// Boxes as Annotorious has them: in pixels of the picture that is shown.
function annotationOf(box) {
  const s = current.scale;
  const bounds = ([x0, y0, x1, y1]) => ({minX: x0 / s, minY: y0 / s, maxX: x1 / s, maxY: y1 / s});
  const points = (ring) => pairs(ring).map(([x, y]) => [x / s, y / s]);
  const [x0, y0, x1, y1] = box.xyxy;
  let selector = {type: "RECTANGLE", geometry: {bounds: bounds(box.xyxy), x: x0 / s, y: y0 / s, w: (x1 - x0) / s, h: (y1 - y0) / s, rot: 0}};
  if (box.polygons?.length === 1 && box.polygons[0].length === 1)
    selector = {type: "POLYGON", geometry: {bounds: bounds(around(box.polygons)), points: points(box.polygons[0][0])}};
  else if (box.polygons?.length)
    selector = {type: "MULTIPOLYGON", geometry: {bounds: bounds(around(box.polygons)), polygons: box.polygons.map((rings) =>
      ({bounds: bounds(around([rings])), rings: rings.map((ring) => ({points: points(ring)}))}))}};
  return {id: box.id, bodies: [], target: {annotation: box.id, selector}};
}
/** What an annotation says of its box: inside the picture, in its pixels. */
function shapeOf(annotation) {
  const s = current.scale, [width, height] = current.size, {type, geometry} = annotation.target.selector;
  if (type === "RECTANGLE") {
    const {x, y, w, h} = geometry;
    return {xyxy: inside([x * s, y * s, (x + w) * s, (y + h) * s])};
  }
  const ring = (points) => points.flatMap(([x, y]) => [hundredths(clamp(x * s, 0, width)), hundredths(clamp(y * s, 0, height))]);
  const polygons = type === "POLYGON" ? [[ring(geometry.points)]]
    : geometry.polygons.map((one) => one.rings.map(({points}) => ring(points)));
  return {xyxy: inside(around(polygons)), polygons};
}
const pairs = (ring) => Array.from({length: ring.length / 2}, (_, i) => [ring[2 * i], ring[2 * i + 1]]);
function around(polygons) {
  const points = polygons.flat().flatMap(pairs), xs = points.map(([x]) => x), ys = points.map(([, y]) => y);
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
}
function inside([x0, y0, x1, y1]) {
  const [width, height] = current.size;
  const left = clamp(x0, 0, width - LEAST), top = clamp(y0, 0, height - LEAST);
  return [left, top, clamp(x1, left + LEAST, width), clamp(y1, top + LEAST, height)].map(hundredths);
}

/** Takes what was done on the picture, once a finger or a button is released and Annotorious has seen it. */
let due = 0;
function takeOverSoon() {
  clearTimeout(due);
  due = setTimeout(takeOver, 0);
}
/** Before anything else happens: who is quicker than the timer must not lose a box. */
function takeOverNow() { if (due) takeOver(); }
function takeOver() {
  clearTimeout(due);
  due = 0;
  if (!annotator) return;
  const before = snapshot(), waiting = current.boxes.find((one) => one.id === undrawn && near(one.xyxy, middle()));
  let made;
  for (const annotation of annotator.getAnnotations()) {
    const box = boxOf(annotation.id), shape = shapeOf(annotation);
    if (!box) {
      made = withId({xyxy: shape.xyxy, label: active, draft: null, ...(shape.polygons ? {polygons: shape.polygons} : {})});
      current.boxes.push(made);
      selected = new Set([made.id]);
    } else if (shape.polygons) {
      const was = JSON.stringify(shapeOf(annotationOf(box)).polygons);
      if (JSON.stringify(shape.polygons) !== was) Object.assign(box, shape, {mask: undefined});
    } else if (!near(shape.xyxy, box.xyxy)) Object.assign(box, shape, {mask: undefined});
  }
  if (made && waiting) {  // this is what was drawn
    current.boxes = current.boxes.filter((one) => one !== waiting);
    made.id = waiting.id;
    selected = new Set([made.id]);
  }
  commit(before);
}

function draw() {
  drawBoxes();
  if (annotator) {
    drawing = true;
    labels = new Map(current.boxes.map((one) => [one.id, one.label]));
    annotator.setAnnotations(current.boxes.map(annotationOf), true);
    annotator.setStyle((...given) => style(...given));
    const ids = chosen().map((one) => one.id);
    if (ids.length && ids.length <= MOST_HANDLES) annotator.setSelected(ids, true); else annotator.cancelSelected();
    drawing = false;
  }
  drawTags();
  drawUndo();
  $("redo").disabled = !current.undone.length;
  for (const radio of document.getElementsByName("status")) radio.checked = radio.value === current.status;
}
function drawUndo() { $("undo").disabled = !dropIsLast && !current?.steps.length; }
function select(ids) {
  selected = new Set(ids);
  draw();
}
function drawTags() {
  const layer = $("tags");
  if (!layer) return;
  const width = canvasWidth();  // measured once: each time the page is laid out again
  layer.replaceChildren(...current.boxes.map((box) => {
    const tag = element("span", {className: "tag", textContent: labelName(box.label)});
    tag.dataset.id = box.id;
    tag.style.background = data.colours[box.label];
    tag.style.color = data.inks[box.label];
    tag.classList.toggle("chosen", selected.has(box.id));
    placeTag(tag, box.xyxy, width);
    return tag;
  }));
  // Labels lie beside those that they would hide, or below where the picture ends. All are measured before one is moved.
  const tags = [...layer.children], placed = [], edge = layer.getBoundingClientRect().right;
  for (const [i, {left, right, top, bottom}] of tags.map((tag) => tag.getBoundingClientRect()).entries()) {
    const start = Math.min(0, edge - right);
    let by = start, down = 0;
    for (let tries = 0; tries < 8; tries++) {
      const other = placed.find((one) => left + by < one.right && one.left < right + by && top + down < one.bottom && one.top < bottom + down);
      if (!other) break;
      by = other.right - left + 2;
      if (right + by > edge) [by, down] = [start, other.bottom - top + 2];
    }
    tags[i].style.margin = `${down}px 0 0 ${by}px`;
    placed.push({left: left + by, right: right + by, top: top + down, bottom: bottom + down});
  }
  const maybe = unsureDrafts().filter((one) => one.score >= LEAST_SHOWN);
  layer.append(...maybe.map((one) => doubt(one, () => keep([one]))), ...missing().map((one) => doubt(missingBox(one), () => answer(one, true))));
}
/** An unsure draft on the picture: dashed, with its name, which keeps it. */
function doubt(draft, work) {
  const shade = dashed(draft, "doubt");
  const name = element("button", {type: "button", tabIndex: -1, textContent: `${labelName(draft.label)}?`, title: "Keep this box"});
  name.addEventListener("click", work);
  shade.append(name);
  return shade;
}
/** A dashed box where a draft is. */
function dashed({xyxy: [x0, y0, x1, y1], label}, className) {
  const [width, height] = current.size, shade = element("div", {className});
  Object.assign(shade.style, {left: `${100 * x0 / width}%`, top: `${100 * y0 / height}%`, width: `${100 * (x1 - x0) / width}%`,
    height: `${100 * (y1 - y0) / height}%`, borderColor: data.colours[label]});
  return shade;
}
function placeTag(tag, [x0, y0], width = canvasWidth()) {
  tag.style.left = `${100 * x0 / current.size[0]}%`;
  tag.style.top = `${100 * y0 / current.size[1]}%`;
  tag.classList.toggle("inside", y0 * width / current.size[0] < 18);
}
function moveTag(annotation) {
  const tag = $("tags")?.querySelector(`[data-id="${annotation.id}"]`);
  if (tag) placeTag(tag, shapeOf(annotation).xyxy);
}

// -------------------------------------------------------------------------------------------------------------- zoom
const canvasWidth = () => $("canvas").getBoundingClientRect().width || 1;
function fit() {
  if (!current) return;
  const stage = $("stage"), [width, height] = current.size;
  // On a phone the stage is as high as the picture, so that the boxes are near.
  stage.style.height = innerWidth <= 700 ? `${Math.round(Math.min(innerHeight * 0.55, stage.clientWidth * height / width))}px` : "";
  const fitted = Math.min(stage.clientWidth, stage.clientHeight * width / height, Math.max(width, 400) * 4);
  $("canvas").style.width = `${Math.max(40, Math.floor(fitted * zoom))}px`;
  $("zoom").textContent = `${Math.round(100 * zoom)} %`;
}
function zoomTo(wanted, clientX = null, clientY = null) {
  const stage = $("stage"), bounds = stage.getBoundingClientRect(), before = canvasWidth();
  const x = clientX === null ? stage.clientWidth / 2 : clientX - bounds.x, y = clientY === null ? stage.clientHeight / 2 : clientY - bounds.y;
  zoom = clamp(wanted, 1, 12);
  const left = stage.scrollLeft + x, top = stage.scrollTop + y;
  fit();
  const ratio = canvasWidth() / before;
  stage.scrollTo(left * ratio - x, top * ratio - y);
  drawTags();
}
function setPan(on) {
  $("pan").setAttribute("aria-pressed", on);
  $("stage").classList.toggle("panning", on);
}
new ResizeObserver(() => { fit(); }).observe($("stage"));
$("stage").addEventListener("wheel", (event) => {
  if (event.shiftKey) return;
  event.preventDefault();
  const pixels = event.deltaY * [1, 16, 400][event.deltaMode];
  zoomTo(zoom * Math.exp(-clamp(pixels, -200, 200) / 500), event.clientX, event.clientY);
}, {passive: false});
{ // Dragging with a mouse moves the picture, too; a finger does it by itself.
  let from = null;
  $("stage").addEventListener("pointerdown", (event) => {
    if ($("pan").ariaPressed === "true" && event.pointerType === "mouse") from = [event.clientX + $("stage").scrollLeft, event.clientY + $("stage").scrollTop];
  });
  addEventListener("pointermove", (event) => { if (from) $("stage").scrollTo(from[0] - event.clientX, from[1] - event.clientY); });
  addEventListener("pointerup", () => { from = null; });
}

// ----------------------------------------------------------------------------------------------- pointers on the stage
let pressed = null, swallow = false, dragged = false;
let corner = null;  // where the last click was
let undrawn = null;  // the id of a new box that the next drag draws
// The fingers that follow a first one, and the other buttons of a mouse, draw nothing.
for (const kind of ["pointerdown", "pointermove", "pointerup"])
  addEventListener(kind, (event) => { if (!event.isPrimary || event.button > 0) event.stopImmediatePropagation(); }, true);
addEventListener("pointerdown", takeOverNow, true);
$("canvas").addEventListener("pointerdown", (event) => {
  if (event.target.closest?.(".doubt")) { event.stopPropagation(); return; }  // the click that follows keeps the box
  const onSelected = event.target.closest?.(".a9s-annotation.selected");
  pressed = {x: event.clientX, y: event.clientY};
  corner = {clientX: event.clientX, clientY: event.clientY};
  if (!annotator || $("pan").ariaPressed === "true") return;
  if (event.shiftKey && !heat) {
    event.stopPropagation();
    event.preventDefault();
    swallow = true;
    const hit = annotator.state.store.getAt(...shownPoint(event), undefined, 4);
    if (hit) {
      const ids = new Set(selected);
      if (!ids.delete(hit.id)) ids.add(hit.id);
      select(ids);
    }
  } else if (!onSelected) {
    if (selected.size > MOST_HANDLES) select([]);  // Annotorious does not know of it
    else if (selected.size) annotator.cancelSelected();  // so that the same drag draws a box
    const layer = annotator.element.querySelector("svg");
    if (event.isTrusted) layer.setPointerCapture(event.pointerId);  // also where it ends beside the picture
    // A finger that taps the next corner of a polygon has not moved there.
    if (event.pointerType === "touch") layer.dispatchEvent(new PointerEvent("pointermove", event));
  }
}, true);
// On the window and before all others, as Annotorious ends some of these events.
addEventListener("pointerup", (event) => {
  if (!pressed) return;
  const still = Math.hypot(event.clientX - pressed.x, event.clientY - pressed.y) < 6;
  dragged = !still;
  if (still && $("polygon").ariaPressed !== "true") undrawn = null;  // a click: the box stays as it is
  pressed = null;
  if (swallow) event.stopPropagation();
  else if (heat && still) suggestAt(event);
  else takeOverSoon();
  swallow = false;
}, true);
addEventListener("pointercancel", () => {
  if (!pressed) return;  // the page was scrolled
  pressed = null;
  swallow = false;
  annotator?.cancelDrawing();
  takeOverSoon();
});
$("canvas").addEventListener("dblclick", takeOverSoon);
function shownPoint(event) {
  const bounds = $("canvas").getBoundingClientRect(), [width, height] = current.size;
  return [(event.clientX - bounds.x) / bounds.width * width / current.scale, (event.clientY - bounds.y) / bounds.height * height / current.scale];
}

// ------------------------------------------------------------------------------------------------------ what boxes do
function change(work, merge = "") {
  takeOverNow();
  const before = snapshot();
  work();
  commit(before, merge);
}
function relabel(label, boxes = chosen()) {
  setActive(label);
  if (boxes.length) change(() => { for (const box of boxes) box.label = label; });
}
function setActive(label) {
  active = label;
  $("active").textContent = labelName(label);
  $("active").style.borderLeftColor = data.colours[label];
}
function drop(boxes = chosen()) {
  if (!boxes.length) return;
  change(() => {
    current.boxes = current.boxes.filter((one) => !boxes.includes(one));
    selected = new Set();
  });
}
const unsureDrafts = () => notThere(current, true);
/** The drafts that were dropped, and what a person drew and dropped, as it was last. */
function dropped() {
  const there = new Set(current.boxes.map(originOf)), drawn = new Map();
  for (const one of current.steps.flatMap(({boxes}) => boxes))
    if (one.draft === null && !there.has(one.id)) drawn.set(one.id, one);
  return [...notThere(current, false), ...drawn.values()];
}
function keep(boxes) {
  if (!boxes.length) return;
  change(() => {
    const back = boxes.map((one) => one.id ? clone(one) : withId(clone(one)));
    current.boxes.push(...back);
    selected = new Set(back.map((one) => one.id));
  });
}
function keepLast() {
  for (let i = current.steps.length - 1; i >= 0; i--) {
    const were = new Set(current.steps[i].boxes.map(originOf)), gone = [...dropped(), ...unsureDrafts()].filter((one) => were.has(originOf(one)));
    if (gone.length) return keep(gone);
  }
  keep(dropped());
}
/** Keeps the best of the unsure boxes. */
function keepUnsure() { keep(unsureDrafts().slice(0, 1)); }
function middle() {
  const [width, height] = current.size;
  return inside([width * 0.375, height * 0.375, width * 0.625, height * 0.625]);
}
/** A box for the keys to move; a drag that follows draws it. */
function addBox() {
  change(() => {
    const made = withId({xyxy: middle(), label: active, draft: null});
    current.boxes.push(made);
    selected = new Set([made.id]);
    undrawn = made.id;
  });
}
/** Cuts the selected boxes where the heat of their name is least; in the middle where the model cannot say. */
async function split() {
  takeOverNow();
  const boxes = chosen(), picture = current;
  if (!boxes.length) return;
  saved("Splitting …");
  const cuts = await Promise.all(boxes.map(async ({xyxy, label}) => {
    try { return await store.suggest(picture.index, {name: labelName(label), split: xyxy}); } catch { return null; }
  }));
  saved("");
  if (picture !== current) return;
  change(() => {
    const made = [];
    for (const [i, box] of boxes.entries()) {
      const at = current.boxes.indexOf(box);
      if (at < 0) continue;  // changed meanwhile
      const [x0, y0, x1, y1] = box.xyxy, {axis, line} = cuts[i] ?? (x1 - x0 >= y1 - y0 ? {axis: 0, line: (x0 + x1) / 2} : {axis: 1, line: (y0 + y1) / 2});
      const halves = axis === 0 ? [[x0, y0, line, y1], [line, y0, x1, y1]] : [[x0, y0, x1, line], [x0, line, x1, y1]];
      const two = halves.map((xyxy, half) => {
        const polygons = box.polygons && halfOf(box.polygons, axis, line, half === 0);
        return withId({xyxy: inside(polygons?.length ? around(polygons) : xyxy), label: box.label, draft: null, ...(polygons?.length ? {polygons} : {})});
      });
      current.boxes.splice(at, 1, ...two);
      made.push(...two);
    }
    selected = new Set(made.map((one) => one.id));
  });
}
/** The part of polygons on one side of a line (Sutherland and Hodgman 1974). */
function halfOf(polygons, axis, line, below) {
  const cut = (ring) => {
    const points = pairs(ring), found = [];
    points.forEach((point, i) => {
      const last = points.at(i - 1), is = (point[axis] < line) === below, was = (last[axis] < line) === below;
      if (is !== was) {
        const t = (line - last[axis]) / (point[axis] - last[axis]);
        found.push([0, 1].map((a) => hundredths(last[a] + t * (point[a] - last[a]))));
      }
      if (is) found.push(point);
    });
    return found.length >= 3 ? found.flat() : null;
  };
  return polygons.map((rings) => rings.map(cut)).filter((rings) => rings[0]).map((rings) => rings.filter(Boolean));
}
function merge() {
  const boxes = chosen();
  if (boxes.length < 2) return;
  change(() => {
    const xyxy = [0, 1].map((i) => Math.min(...boxes.map((one) => one.xyxy[i]))).concat([2, 3].map((i) => Math.max(...boxes.map((one) => one.xyxy[i]))));
    const made = withId({xyxy, label: boxes[0].label, draft: null});
    if (data.masks) made.polygons = boxes.flatMap((one) => one.polygons || [[rectangle(one.xyxy)]]);
    current.boxes = current.boxes.filter((one) => !boxes.includes(one));
    current.boxes.push(made);
    selected = new Set([made.id]);
  });
}
const rectangle = ([x0, y0, x1, y1]) => [x0, y0, x1, y0, x1, y1, x0, y1];
function nudge(dx, dy, resize) {
  change(() => {
    for (const box of chosen()) {
      const [x0, y0, x1, y1] = box.xyxy, [width, height] = current.size;
      if (resize && box.polygons) continue;  // corners are moved by hand
      if (resize) box.xyxy = inside([x0, y0, Math.max(x0 + LEAST, x1 + dx), Math.max(y0 + LEAST, y1 + dy)]);
      else {
        const mx = clamp(dx, -x0, width - x1), my = clamp(dy, -y0, height - y1);
        box.xyxy = inside([x0 + mx, y0 + my, x1 + mx, y1 + my]);
        box.polygons = box.polygons?.map((rings) => rings.map((ring) => ring.map((value, i) => hundredths(value + (i % 2 ? my : mx)))));
      }
      box.mask = undefined;
    }
  }, `${resize ? "resize" : "move"} ${[...selected].join()}`);
}
function setStatus(status) { change(() => { current.status = status; }); }
function go(by) {
  if (!shown.length) return;
  const at = shown.indexOf(heading ?? current?.index ?? -1);
  // A picture that no longer passes the filter leaves its place to the next one.
  const next = at >= 0 ? at + by : by > 0 ? 0 : shown.length - 1;
  if (next < 0 || next >= shown.length) { tell(by > 0 ? "This was the last picture shown." : "This is the first picture shown."); return; }
  return open(shown[next]);
}
function reviewedNext() {
  if (heading !== null) return;  // pressed twice: the next one was not seen yet
  if (current.status !== "reviewed") setStatus("reviewed");
  const at = shown.indexOf(current.index);
  const next = [...shown.slice(at + 1), ...shown.slice(0, at + 1)].find((i) => entries[i].status === "none" && i !== current.index);
  if (next === undefined) return tell("All pictures shown are reviewed.");
  return open(next);
}

// ------------------------------------------------------------------------------------------------- the list of boxes
let items = new Map();  // of the list of boxes, by what they show
function drawBoxes() {
  const focused = document.activeElement?.closest?.("#boxes li")?.dataset.id, which = document.activeElement?.className;
  // Rows that look as before stay: those of a hundred boxes with many names take long to lay out.
  const before = items, list = $("boxes");
  items = new Map(current.boxes.map((box) => {
    const key = JSON.stringify([box.id, box.xyxy, box.label, scoreText(box)]), item = before.get(key) ?? boxItem(box);
    item.querySelector(".pick").checked = selected.has(box.id);
    item.classList.toggle("chosen", selected.has(box.id));
    return [key, item];
  }));
  for (const [key, item] of before) if (!items.has(key)) item.remove();
  [...items.values()].forEach((item, i) => { if (list.children[i] !== item) list.insertBefore(item, list.children[i] ?? null); });
  if (focused) ($("boxes").querySelector(`[data-id="${focused}"] .${which || "pick"}`) || $("boxes").querySelector(".pick") || $("add")).focus();
  if (selected.size === 1) $("boxes").querySelector("li.chosen")?.scrollIntoView({block: "nearest"});
  $("box-count").textContent = current.boxes.length ? `${current.boxes.length}${selected.size ? `, ${selected.size} selected` : ""}` : "none";
  const gone = dropped();
  $("dropped-part").hidden = !gone.length;
  $("dropped").replaceChildren(...gone.map(draftItem));
  const doubts = unsureDrafts();
  $("doubts-part").hidden = !doubts.length;
  $("doubts").replaceChildren(...doubts.map(draftItem));
  drawSuspects();
  $("split").disabled = $("drop").disabled = $("like").disabled = !selected.size;
  $("merge").disabled = selected.size < 2;
}
const sizeText = ([x0, y0, x1, y1]) => `${Math.round(x1 - x0)} × ${Math.round(y1 - y0)} at ${Math.round(x0)}, ${Math.round(y0)}`;
function scoreText(box) {
  const draft = box.draft === null ? null : draftOf(current, box.draft);
  if (!draft) return "new";
  if (data.set) return isEdited(box, draft) ? "edited" : "";
  return isEdited(box, draft) ? "edited" : draft.score.toFixed(2);
}
function boxItem(box) {
  const words = `${labelName(box.label)}, ${scoreText(box)}, ${sizeText(box.xyxy)}`;
  const pick = element("input", {type: "checkbox", className: "pick", ariaLabel: `Select ${words}`});
  pick.addEventListener("change", () => {
    const ids = new Set(selected);
    if (pick.checked) ids.add(box.id); else ids.delete(box.id);
    select(ids);
  });
  const kind = element("button", {type: "button", className: "kind", textContent: labelName(box.label), ariaLabel: `Label of ${words}`});
  kind.addEventListener("click", () => pickLabel((label) => relabel(label, [boxOf(box.id)])));
  const away = element("button", {type: "button", className: "away", textContent: "Drop", ariaLabel: `Drop ${words}`});
  away.addEventListener("click", () => drop([boxOf(box.id)]));
  const item = element("li", {title: sizeText(box.xyxy)}, pick, kind, element("span", {className: "score", textContent: scoreText(box)}), away);
  item.dataset.id = box.id;
  item.style.borderLeftColor = data.colours[box.label];
  return item;
}
/** A draft that no box comes of, or a drawn box that was dropped, in the list of the dropped or of the unsure ones. */
function draftItem(draft) {
  const words = `${labelName(draft.label)} ${draft.score?.toFixed(2) ?? "new"}`;
  const back = element("button", {type: "button", textContent: "Keep", ariaLabel: `Keep ${words}, ${sizeText(draft.xyxy)}`});
  back.addEventListener("click", () => {
    ghost(null);
    keep([draft]);
    $("boxes").querySelector("li:last-child .pick").focus();
  });
  const item = element("li", {}, element("span", {textContent: words}), back);
  item.style.borderLeftColor = data.colours[draft.label];
  for (const [event, on] of [["pointerenter", true], ["focusin", true], ["pointerleave", false], ["focusout", false]])
    item.addEventListener(event, () => ghost(on ? draft : null));
  return item;
}
/** Shows where a draft of the lists is. */
function ghost(draft) {
  $("canvas").querySelector(".ghost")?.remove();
  if (draft && $("tags")) $("tags").append(dashed(draft, "ghost"));
}

// ------------------------------------------------------------------------------------------- labels by their names
let picked = null;  // what is done with the label that is chosen
function pickLabel(work) {
  picked = work;
  $("picker-search").value = "";
  drawPicker();
  $("picker").showModal();
  $("picker-search").focus();
}
/** The labels that have what was typed: first those that begin with it. */
function drawPicker() {
  const typed = $("picker-search").value.trim().toLowerCase();
  const places = data.names.map((name) => name.toLowerCase().indexOf(typed)), found = [...places.keys()].filter((i) => places[i] >= 0);
  found.sort((a, b) => Number(places[a] > 0) - Number(places[b] > 0) || a - b);
  $("picker-names").replaceChildren(...found.map((label, place) => {
    const option = element("button", {type: "button", role: "option", tabIndex: -1, ariaSelected: String(place === 0)},
      element("span", {textContent: labelName(label)}), element("kbd", {textContent: label < 10 ? String((label + 1) % 10) : "", hidden: label >= 10}));
    option.dataset.label = label;
    option.style.borderLeftColor = data.colours[label];
    option.addEventListener("click", () => pick(label));
    return option;
  }));
}
function pick(label) {
  $("picker").close();
  picked(label);
}
const highlighted = () => $("picker-names").querySelector("[aria-selected=true]")?.dataset.label;
/** Gives a label another name in all pictures, adds one (null → to) or removes it (→ null): the page is loaded again. */
async function renameLabel(name, to) {
  if (to === undefined || to === name) return;
  try {
    await allSaved();
    await store.post("/names", {name, to});
    location.reload();
  } catch (error) {
    $("picker").close();
    tell(error.message);
  }
}
async function allSaved() {
  while ([...pending].some((one) => one.saving)) await new Promise((done) => setTimeout(done, 50));
  if (pending.size) throw new Error("some changes are not saved yet");
}
$("picker-search").addEventListener("input", drawPicker);
$("picker").addEventListener("keydown", (event) => {
  const options = [...$("picker-names").children], at = options.findIndex((one) => one.ariaSelected === "true");
  if (event.key === "Enter" && options[at]) pick(Number(options[at].dataset.label));
  else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    const next = options[clamp(at + (event.key === "ArrowDown" ? 1 : -1), 0, options.length - 1)];
    options[at]?.setAttribute("aria-selected", "false");
    next?.setAttribute("aria-selected", "true");
    next?.scrollIntoView({block: "nearest"});
  } else return;
  event.preventDefault();
});
$("picker").addEventListener("click", (event) => { if (event.target === $("picker")) $("picker").close(); });

// --------------------------------------------------------------------------------------------- suspects of a check
let suspect = null;  // the number of the one that keys answer
const boxOfSuspect = (one) => current.boxes.find((box) => box.draft !== null && box.draft === one.box);
const missing = () => data.set ? openSuspects(current).filter((one) => one.xyxy) : [];
const missingBox = ({xyxy, likelier}) => ({xyxy, label: data.names.indexOf(likelier), draft: null});
/** What taking the suggestion does; null where there is none. */
function suggestion(one) {
  if (one.xyxy) return `Add ${one.likelier}`;
  if (!boxOfSuspect(one) || one.kind === "badly placed") return null;
  return one.likelier ? `Take ${one.likelier}` : "Drop";
}
function selectSuspect() {
  const box = suspect === null ? null : boxOfSuspect(current.suspects[suspect]);
  if (box) selected = new Set([box.id]);
}
/** Says whether a suspect is right as it is, or takes what is suggested; the next one follows. */
function answer(one, take) {
  const box = boxOfSuspect(one);
  change(() => {
    current.answered = [...current.answered, one.number];
    if (!take) return;
    if (one.xyxy) current.boxes.push(withId(clone(missingBox(one))));
    else if (one.likelier) box.label = data.names.indexOf(one.likelier);
    else current.boxes = current.boxes.filter((other) => other !== box);
  });
  nextSuspect();
}
function answerByKey(take) {
  const one = current.suspects?.[suspect];
  if (one && heading === null && (!take || suggestion(one))) answer(one, take);
}
/** The next suspect of this picture, or the first of the picture with the worst one. */
function nextSuspect() {
  if (!data.set) return;
  const left = openSuspects(current), next = left.find((one) => one.number > (suspect ?? -1)) ?? (left[0]?.number === suspect ? null : left[0]);
  if (next) {
    suspect = next.number;
    selected = new Set();
    selectSuspect();
    return draw();
  }
  const others = [...entries.keys()].filter((i) => i !== current.index && entries[i].margin < 1);
  if (others.length) return open(others.reduce((worst, i) => entries[i].margin < entries[worst].margin ? i : worst));
  tell(left.length ? "This is the last suspect." : "No suspect is left. “Write corrected set” writes the set.");
}
/** A suspect whose box a person drops, renames or moves is judged by that. */
function answerChanged(before) {
  if (!data.set) return;
  const was = new Map(before.boxes.map((box) => [box.draft, box]));
  for (const one of openSuspects(current)) {
    const box = boxOfSuspect(one), old = was.get(one.box);
    if (!old || one.xyxy) continue;
    const renamed = box && box.label !== old.label, moved = box && !near(box.xyxy, old.xyxy);
    if (!box || (one.kind === "badly placed" || !one.likelier ? moved : renamed)) current.answered = [...current.answered, one.number];
  }
}
function drawSuspects() {
  if (!data.set) return;
  $("suspects-part").hidden = !current.suspects.length;
  const left = entries.filter((one) => one.margin < 1).length;
  $("suspects-left").textContent = `${openSuspects(current).length} here, ${plural(left, "picture", "pictures")} with some`;
  $("suspects").replaceChildren(...current.suspects.map(suspectItem));
}
function suspectItem(one) {
  const box = boxOfSuspect(one), done = current.answered.includes(one.number), given = box ? labelName(box.label) : "";
  const words = [one.kind, one.chance.toFixed(2), one.xyxy ? one.likelier : given, one.reason].filter(Boolean).join(" · ");
  const item = element("li", {}, element("span", {textContent: words}));
  item.classList.toggle("done", done);
  item.classList.toggle("chosen", one.number === suspect);
  item.addEventListener("click", () => { suspect = one.number; selected = new Set(); selectSuspect(); draw(); });
  if (done) return item;
  const keys = one.number === suspect ? [" (y)", " (t)"] : ["", ""], taken = suggestion(one);
  const button = (text, take) => {
    const made = element("button", {type: "button", textContent: text});
    made.addEventListener("click", (event) => { event.stopPropagation(); answer(one, take); });
    return made;
  };
  item.append(button(`Right as it is${keys[0]}`, false), ...(taken ? [button(taken + keys[1], true)] : []));
  return item;
}

// ---------------------------------------------------------------------------------------------- the list of pictures
function wanted() {
  const [from, to] = [Number($("score-from").value), Number($("score-to").value || 1)];
  const [least, most] = ($("by-size").value || "0,2").split(",").map(Number);
  const label = $("by-label").value;
  return {
    all: label === "" && from <= 0 && to >= 1 && $("by-size").value === "",
    box: ([of, score, share]) => (label === "" || String(of) === label) && score >= from && score <= to && share >= least && share < most,
    status: $("by-status").value,
  };
}
function filter() {
  const {all, box, status} = wanted();
  shown = entries.map((_, i) => i).filter((i) => (status === "" || entries[i].status === status || (status === "changed" && isNew(entries[i]))) && (all || entries[i].found.some(box)));
  const byName = (a, b) => entries[a].name < entries[b].name ? -1 : entries[a].name > entries[b].name ? 1 : 0;
  const done = (i) => Number(entries[i].status !== "none");  // what somebody has seen comes last
  const by = {name: byName, random: (a, b) => entries[a].place - entries[b].place, margin: (a, b) => done(a) - done(b) || entries[a].margin - entries[b].margin || byName(a, b)};
  shown.sort(by[$("order").value]);
  $("random-needs").hidden = data.set || $("order").value !== "random";
  $("spacer").style.height = `${shown.length * ROW}px`;
  $("list").scrollTop = 0;
  drawList(true);
}
/** Only the rows in view are there: a list of thousands scrolls as one of ten. */
const rows = new Map();
function drawList(toCurrent = false) {
  const list = $("list"), at = current ? shown.indexOf(current.index) : -1;
  if (toCurrent && at >= 0 && (at * ROW < list.scrollTop || (at + 1) * ROW > list.scrollTop + list.clientHeight))
    list.scrollTop = (at - 1) * ROW;
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4), last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 4);
  const inView = new Set(shown.slice(first, last));
  for (const [index, row] of rows) if (!inView.has(index)) { row.remove(); rows.delete(index); }
  for (let place = first; place < last; place++) {
    const index = shown[place], entry = entries[index];
    let row = rows.get(index);
    if (!row) {
      const button = element("button", {type: "button"}, element("img", {src: store.thumbnail(index), alt: "", loading: "lazy", width: 64, height: 56}),
        element("span", {}, element("span", {className: "file", textContent: `\u2066${entry.name}\u2069`, title: entry.name}), element("span", {className: "of"})));
      button.addEventListener("click", () => { open(index); if (innerWidth <= 1000) showList(false); });
      row = element("div", {className: "row", role: "listitem"}, button);
      rows.set(index, row);
    }
    const there = $("spacer").children[place - first];  // keys and screen readers follow the order of the document
    if (there !== row) $("spacer").insertBefore(row, there ?? null);
    row.style.top = `${place * ROW}px`;
    row.setAttribute("aria-setsize", shown.length);
    row.setAttribute("aria-posinset", place + 1);
    row.firstChild.setAttribute("aria-current", index === current?.index);
    const of = row.querySelector(".of");
    of.dataset.status = entry.status;
    const unsure = data.set ? (entry.margin < 1 ? `, suspect ${(1 - entry.margin).toFixed(2)}` : "") : entry.unsure ? `, ${entry.unsure} unsure` : "";
    of.textContent = `${STATUS[entry.status]} · ${plural(entry.found.length, "box", "boxes")}${unsure}${isNew(entry) ? " · new" : ""}`;
  }
  const left = entries.filter((one) => one.status === "none").length;
  $("count").textContent = `· ${plural(shown.length, "picture", "pictures")} shown, ${left.toLocaleString("en")} not reviewed`;
  $("position").textContent = at >= 0 ? `${(at + 1).toLocaleString("en")} of ${shown.length.toLocaleString("en")}` : `${shown.length.toLocaleString("en")} shown`;
  $("previous").disabled = !shown.length || at === 0;
  $("next").disabled = !shown.length || at === shown.length - 1;
}
let scrolled = 0;
$("list").addEventListener("scroll", () => {
  cancelAnimationFrame(scrolled);
  scrolled = requestAnimationFrame(() => drawList());
}, {passive: true});
new ResizeObserver(() => drawList()).observe($("list"));
function showList(on) {
  editor.classList.toggle("open", on);
  $("toggle-list").setAttribute("aria-expanded", on);
  drawList(true);
  fit();
}
let droppedShown = [];  // what the last drop in all pictures shown took away: picture, its boxes before, the revision since
let dropIsLast = false;    // whether nothing was changed since, so that Undo takes it back
const DROPPED = `cliploc-dropped:${data.folder}`;
/** Keeps what can be taken back, also over a reload. */
function keepDropped(done) {
  droppedShown = done;
  dropIsLast &&= done.length > 0;
  drawUndo();
  $("take-back").hidden = !done.length;
  try {
    sessionStorage.setItem(DROPPED, JSON.stringify(done));
  } catch { sessionStorage.removeItem(DROPPED); }  // too much
}
async function dropShown() {
  const {box: fits} = wanted(), all = $("drop-own").checked;
  const isOwn = (entry, found) => entry.status !== "none" || found[3];  // a person's work
  const fitting = (index) => entries[index].found.filter(fits);
  const own = shown.flatMap((i) => fitting(i).filter((one) => isOwn(entries[i], one))).length;
  const goes = (entry, found) => fits(found) && (all || !isOwn(entry, found));
  const having = shown.filter((i) => entries[i].found.some((one) => goes(entries[i], one)));
  const count = shown.flatMap(fitting).length - (all ? 0 : own), pictures = plural(having.length, "picture", "pictures");
  const yours = `${plural(own, "box", "boxes")} that you drew, changed or reviewed`;
  if (!count) { tell(own ? `No draft fits the filter: ${yours} would stay.` : "No box fits the filter."); return; }
  const stay = own ? ` ${yours} ${own === 1 ? "stays" : "stay"}.` : "";
  if (!confirm(all ? `Drop ${plural(count, "box", "boxes")} in ${pictures}, with ${yours}?` : `Drop ${plural(count, "draft", "drafts")} in ${pictures}?${stay}`)) return;
  const [done, number] = await changeMany(having, (_, state) => {
    const entry = entryOf(state);
    return state.boxes.filter((_, i) => !goes(entry, entry.found[i]));
  }, (number) => `Dropping: ${number.toLocaleString("en")} of ${plural(count, "box", "boxes")} …`);
  $("drop-own").checked = false;
  dropIsLast = true;
  keepDropped(done);
  saved(`${plural(number, "box", "boxes")} dropped: Undo takes them back`);
}
/** Undoes the last drop in all pictures shown, except where a picture was changed since. */
async function takeBackShown() {
  const todo = new Map(droppedShown.map((one) => [one.index, one])), changedSince = [];
  $("take-back").hidden = true;
  const [done, back] = await changeMany([...todo.keys()], (index, state) => {
    const {revision, before} = todo.get(index);
    if (revision === state.revision) return before;
    changedSince.push(state.name);
    todo.delete(index);
    return null;
  }, (number) => `Taking back: ${plural(number, "box", "boxes")} …`);
  for (const {index} of done) todo.delete(index);
  keepDropped([...todo.values()]);  // where the server was gone, it can be tried again
  saved(`${plural(back, "box", "boxes")} taken back`);
  if (changedSince.length) tell(`Changed since, and left as they are: ${changedSince.join(", ")}. Their dropped drafts are in the list of each picture.`);
}
/** Gives pictures other boxes, one after the other, and saves them; what was changed, and by how many boxes. */
async function changeMany(indices, boxesOf, says) {
  takeOverNow();
  editor.inert = true;  // what is done to a picture meanwhile would be lost
  const here = current?.index, done = [];
  let changed = 0;
  try {
    for (const index of indices) {
      try {
        const state = await store.state(index), before = state.boxes, boxes = boxesOf(index, state);
        if (!boxes) continue;
        state.revision = await store.save(index, {revision: state.revision, status: state.status, boxes: boxes.map(plainBox), drawn: state.drawn, answered: state.answered, learn: $("order").value !== "random"});
        done.push({index, before: before.map(plainBox), revision: state.revision});
        changed += Math.abs(boxes.length - before.length);
        entries[index] = entryOf({...state, boxes, changed: entries[index].changed});
      } catch (error) {
        tell(`${entries[index].name} was not changed: ${error.message}`);
        break;
      }
      histories.delete(index);
      saved(says(changed));
    }
    filter();
    if (here !== undefined) await open(here, true);
  } finally {
    editor.inert = false;
  }
  return [done, changed];
}

// ---------------------------------------------------------------------------------------------- learning from corrections
let learnt = null, asking = 0;  // what the server said last
/** Whether the last refit gave a picture other drafts; of one that somebody changed since nothing is to be said. */
const isNew = (entry) => Boolean(entry.changed) && entry.status === "none";
/** Asks what was learnt: after each save, and again and again while the server is learning. */
async function askLearning() {
  if (!data.learns) return;
  clearTimeout(asking);
  try {
    await sayLearning(await store.learning());
  } catch { /* saving says where the server is gone */ }
}
addEventListener("focus", askLearning);  // another tab may have taught it something
async function sayLearning(said) {
  const before = learnt;
  learnt = said;
  $("learning").hidden = false;
  const text = said.failed || said.said;
  if ($("learnt").textContent !== text) $("learnt").textContent = text;  // a screen reader says it again otherwise
  $("learnt").classList.toggle("failed", Boolean(said.failed));
  $("learnt-more").textContent = said.undo ? `New boxes in ${plural(said.changed, "picture", "pictures")}.` : "";
  $("learnt-names-part").hidden = said.working || data.names.length < 2 || !said.names.length;
  $("learnt-names").replaceChildren(...said.names.map((one) => element("li", {textContent: one})));
  $("learn-now").disabled = !said.ready;
  $("learn-now").hidden = !said.ready && !said.working;
  $("learn-undo").hidden = !said.undo;
  clearTimeout(asking);
  if (said.working) asking = setTimeout(askLearning, 500);
  if (before && before.drafts !== said.drafts) await showDrafts();
}
/** Shows the drafts of now; a picture with changes that are not saved yet stays as it is. */
async function showDrafts() {
  const fresh = await store.entries(), kept = new Map([...pending].map((one) => [one.index, entries[one.index]]));
  entries = fresh.map((one, i) => kept.get(i) ?? one);
  filter();
  refresh();
}
/** Opens the picture again where it has other drafts now and nothing was changed in it; not while a hand is on it. */
let refreshing = 0;
function refresh() {
  clearTimeout(refreshing);
  const stale = current && entries[current.index].drawn !== current.drawn;
  if (!stale || current.steps.length || current.undone.length || pending.has(current)) return;
  if (pressed || due || heat || selected.size || document.querySelector("dialog[open]")) { refreshing = setTimeout(refresh, 500); return; }
  const {scrollLeft, scrollTop} = $("stage"), near = zoom;
  open(current.index, true).then(() => {
    if (near === 1) return;
    zoom = near;
    fit();
    drawTags();
    $("stage").scrollTo(scrollLeft, scrollTop);
  });
}
async function learnBy(path) {
  $("learn-now").disabled = $("learn-undo").disabled = true;
  try {
    await sayLearning(await store.post(path));
  } catch (error) { tell(error.message); await askLearning(); }
  $("learn-undo").disabled = false;
}
/** Looks in all pictures for things like the selected box, by all boxes of its label in this picture. */
async function findLike() {
  takeOverNow();
  const [box] = chosen(), {index} = current;
  if (!box || !data.learns) return;
  try {
    await allSaved();
    await sayLearning(await store.post(`/pictures/${index}/like`, {name: labelName(box.label)}));
  } catch (error) { tell(error.message); }
}
// -------------------------------------------------------------------------------------------------- asking the model
let heats = 0;  // asked for; the last one counts
async function showHeat() {
  const name = $("suggest-name").value.trim();
  if (!name) return;
  const picture = current, mine = ++heats, late = () => picture !== current || mine !== heats;
  $("suggest-said").textContent = "The model is computing …";
  try {
    const answer = await store.suggest(picture.index, {name});
    const image = element("img", {src: answer.heat});
    await image.decode();
    if (late()) return;
    endHeat();
    const canvas = element("canvas", {className: "heat", width: image.naturalWidth, height: image.naturalHeight});
    const context = canvas.getContext("2d", {willReadFrequently: true});
    context.drawImage(image, 0, 0);
    heat = {name, canvas, values: context.getImageData(0, 0, canvas.width, canvas.height)};
    $("canvas").insertBefore(canvas, $("tags"));
    $("stage").classList.add("heated");
    $("tau").value = String(Math.round(answer.threshold * 20) / 20);
    $("tau-part").hidden = $("suggest-end").hidden = false;
    $("suggest-said").textContent = answer.said;
    paintHeat();
  } catch (error) {
    if (late()) return;
    endHeat();
    $("suggest-said").textContent = error.message;
  }
}
/** Shows what is hotter than τ strongly, the rest faintly. */
function paintHeat() {
  const {canvas, values} = heat, painted = new ImageData(canvas.width, canvas.height), level = Number($("tau").value) * 255;
  for (let i = 0; i < values.data.length; i += 4) {
    const value = values.data[i];
    painted.data.set([255, 70, 0, value > level ? 120 : value * 0.25], i);
  }
  canvas.getContext("2d").putImageData(painted, 0, 0);
  $("tau-value").textContent = Number($("tau").value).toFixed(2);
}
async function suggestAt(event) {
  const [x, y] = shownPoint(event).map((value) => value * current.scale), picture = current, asked = heat;
  const late = () => picture !== current || asked !== heat;
  try {
    const answer = await store.suggest(picture.index, {name: heat.name, threshold: Number($("tau").value), at: [x, y]});
    if (late()) return;
    change(() => {
      const made = withId({...answer, draft: null});
      current.boxes.push(made);
      selected = new Set([made.id]);
    });
    $("suggest-said").textContent = "A box was added.";
  } catch (error) {
    if (!late()) $("suggest-said").textContent = error.message;
  }
}
function endHeat() {
  heat?.canvas.remove();
  heat = null;
  $("stage").classList.remove("heated");
  $("tau-part").hidden = $("suggest-end").hidden = true;
  $("suggest-said").textContent = "";
}

// --------------------------------------------------------------------------------------------------- buttons and keys
const press = (id, work) => $(id)?.addEventListener("click", work);
press("previous", () => go(-1));
press("next", () => go(1));
press("undo", undo);
press("redo", redo);
press("add", addBox);
press("split", split);
press("merge", merge);
press("drop", () => drop());
press("like", findLike);
press("done", reviewedNext);
press("learn-now", () => learnBy("/learning"));
press("learn-undo", () => learnBy("/learning/undo"));
press("zoom-in", () => zoomTo(zoom * 1.5));
press("zoom-out", () => zoomTo(zoom / 1.5));
press("zoom-fit", () => zoomTo(1));
press("pan", () => setPan($("pan").ariaPressed !== "true"));
press("polygon", togglePolygon);
press("help-button", () => $("help").showModal());
press("toggle-list", () => showList(!editor.classList.contains("open")));
press("drop-shown", dropShown);
press("take-back", takeBackShown);
press("suggest-end", endHeat);
press("exports", async () => {
  $("exports").disabled = true;
  saved("Writing exports …");
  try {
    await allSaved();
    const {files, folder} = await store.post("/exports");
    saved(`Written to ${folder}: ${files.join(", ")}`);
  } catch (error) { saved(`Not written: ${error.message}`, true); }
  $("exports").disabled = false;
});
$("suggest")?.addEventListener("submit", (event) => { event.preventDefault(); showHeat(); });
$("tau")?.addEventListener("input", () => { if (heat) paintHeat(); });
press("active", () => pickLabel((label) => setActive(label)));
press("labels", toggleLabels);
press("new-name", () => {
  renameLabel(null, prompt("A new label, for boxes that you draw or relabel. `cliploc annotate` with it looks for it:", $("picker-search").value)?.trim() || undefined);
});
press("rename", () => {
  if (!highlighted()) return;
  const name = labelName(highlighted());
  renameLabel(name, prompt(`“${name}” in all pictures; the name of another label joins both:`, name)?.trim() || undefined);
});
press("remove-name", () => {
  if (highlighted() && confirm(`Remove “${labelName(highlighted())}” with its boxes in all pictures, also those that you drew? This cannot be undone.`)) renameLabel(labelName(highlighted()), null);
});
for (const id of ["by-label", "by-status", "by-size", "order"]) $(id).addEventListener("change", filter);
for (const id of ["score-from", "score-to"]) $(id).addEventListener("input", filter);
for (const radio of document.getElementsByName("status")) radio.addEventListener("change", () => setStatus(radio.value));
function togglePolygon() {
  if (!data.masks) return;
  $("polygon").setAttribute("aria-pressed", $("polygon").ariaPressed !== "true");
  setTool();
}
/** A polygon is clicked corner by corner, a box is dragged. */
function setTool() {
  const polygon = $("polygon").ariaPressed === "true";
  annotator?.setDrawingTool(polygon ? "polygon" : "rectangle");
  annotator?.setDrawingMode(polygon ? "click" : "drag");
}
/** Ends the polygon that is being drawn, as a double click at its last corner does. */
function endPolygon() {
  const layer = annotator?.element.querySelector("svg");
  const drawn = $("polygon").ariaPressed === "true" && layer?.querySelector(".a9s-rubberband");
  if (!corner || !drawn) return false;  // Annotorious has one for boxes, too
  for (const kind of ["pointerdown", "pointerup"])
    layer.dispatchEvent(new PointerEvent(kind, {...corner, isPrimary: true, button: 0, bubbles: true}));
  layer.dispatchEvent(new MouseEvent("dblclick", {...corner, bubbles: true}));
  takeOverSoon();
  return true;
}
function toggleLabels() {
  const off = $("labels").ariaPressed !== "true";
  $("labels").setAttribute("aria-pressed", off);
  $("stage").classList.toggle("unlabelled", off);
}
function selectBy(by, more) {
  const ids = current.boxes.map((one) => one.id), last = ids.indexOf([...selected].at(-1));
  const next = ids[last < 0 ? (by > 0 ? 0 : ids.length - 1) : (last + by + ids.length) % ids.length];
  if (next) select(more ? [...selected, next] : [next]);
}
const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
const KEYS = {
  n: () => go(1), p: () => go(-1), r: reviewedNext, u: () => setStatus("later"), o: () => setStatus("skipped"), c: () => setStatus("none"),
  ",": (event) => selectBy(-1, event.shiftKey), ".": (event) => selectBy(1, event.shiftKey), "<": () => selectBy(-1, true), ">": () => selectBy(1, true),
  ";": () => selectBy(-1, true), ":": () => selectBy(1, true),  // Shift and , or . on other keyboards
  a: () => select(current.boxes.map((one) => one.id)), x: () => drop(), Delete: () => drop(), Backspace: () => drop(), k: keepLast, Enter: () => endPolygon() || keepUnsure(),
  "/": () => pickLabel((label) => relabel(label)), h: toggleLabels,
  b: addBox, g: togglePolygon, s: split, m: merge, l: findLike, "+": () => zoomTo(zoom * 1.5), "=": () => zoomTo(zoom * 1.5), "-": () => zoomTo(zoom / 1.5), f: () => zoomTo(1),
  y: () => answerByKey(false), t: () => answerByKey(true), j: nextSuspect,
  v: () => setPan($("pan").ariaPressed !== "true"), "?": () => $("help").showModal(),
  Escape: () => { annotator?.cancelDrawing(); if (heat) endHeat(); else select([]); },
};
// Before Annotorious, which would undo by itself what our history knows better.
addEventListener("keydown", (event) => {
  if (!current || document.querySelector("dialog[open]") || editor.inert) return;
  takeOverNow();
  const typing = event.target.matches?.("input:not([type=radio]):not([type=checkbox]), select, textarea");
  const command = (event.ctrlKey || event.metaKey) && !event.altKey && event.key.toLowerCase();
  // What is typed ahead would be done to the picture that is left.
  if (heading !== null && !typing && !"np?".includes(event.key)) { event.stopImmediatePropagation(); return; }
  if (command === "z" || command === "y") {
    if (typing && event.target.matches("#suggest-name")) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (command === "y" || event.shiftKey) redo(); else undo();
    return;
  }
  if (event.ctrlKey || event.metaKey) return;
  if (typing) { if (event.key === "Escape") event.target.blur(); return; }
  const corners = document.querySelector(".a9s-handle-selected");  // Annotorious deletes these
  if (corners && (event.key === "Delete" || event.key === "Backspace")) { takeOverSoon(); return; }
  if (event.key in ARROWS) {
    if (!selected.size || event.target.type === "radio") return;
    event.preventDefault();
    const [dx, dy] = ARROWS[event.key], far = event.shiftKey ? 10 : 1;
    nudge(dx * far, dy * far, event.altKey);
    return;
  }
  if (event.altKey) return;
  // Enter is a button's own key; but the row of this picture was pressed already.
  if (event.key === "Enter" && event.target.matches?.("button:not(.row [aria-current=true]), summary, a, input")) return;
  const number = "1234567890".indexOf(event.key);
  const work = number >= 0 && event.key.length === 1 ? () => { if (number < data.names.length) relabel(number); } : KEYS[event.key];
  if (!work) return;
  event.preventDefault();
  work(event);
}, true);

// A list that was used with the mouse gives the keys back.
let byPointer = false;
addEventListener("pointerdown", () => { byPointer = true; }, true);
addEventListener("keydown", () => { byPointer = false; }, true);
addEventListener("change", () => {
  const used = document.activeElement;
  if (byPointer && used?.matches("select, input[type=radio]")) used.blur();
});

// -------------------------------------------------------------------------------------------------------------- start
(async () => {
  data.names.forEach((name, i) => {
    $("by-label").append(new Option(name, String(i)));
    $("suggest-names")?.append(element("option", {value: name}));
  });
  setActive(0);
  $("polygon").hidden = !data.masks;
  $("like").hidden = !data.learns;
  for (const id of ["score-from", "score-to"]) $(id).parentElement.hidden = Boolean(data.set);
  try {
    entries = await store.entries();
  } catch (error) {
    tell(`The pictures cannot be listed: ${error.message}. Reload the page.`);
    editor.inert = true;
    return;
  }
  keepDropped(JSON.parse(sessionStorage.getItem(DROPPED)) ?? []);
  filter();
  const asked = Number(location.hash.slice(1) || -1);
  if (!entries.length) return tell("There are no pictures to review.");
  askLearning();
  await open(Number.isInteger(asked) && asked >= 0 && asked < entries.length ? asked : shown[0]);
})();
})();
