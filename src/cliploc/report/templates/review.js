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
  // A high picture is reduced, so that its row is not much higher than the others.
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
    const outline = document.createElementNS(SVG, "path");
    outline.setAttribute("d", (box.mask || []).map((ring) => `M${ring.join(" ")}Z`).join(""));
    outline.setAttribute("stroke", data.colours[box.label]);
    outline.setAttribute("fill", data.colours[box.label]);
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.style.borderLeftColor = data.colours[box.label];
    button.textContent = `${data.names[box.label]} ${box.score.toFixed(2)}${box.group ? " · several?" : ""}`;
    if (box.group) button.title = "This box seems to contain several things.";
    for (const one of [rect, button]) one.addEventListener("click", () => toggle(picture.name, index));
    for (const [event, on] of [["pointerenter", true], ["focus", true], ["pointerleave", false], ["blur", false]])
      button.addEventListener(event, () => rect.classList.toggle("pointed", on));
    item.append(button);
    list.append(item);
    return {rect, outline, button, item};
  });
  // Large boxes first, so that a small box inside a large one is on top and can be clicked.
  const area = (b) => (b.xyxy[2] - b.xyxy[0]) * (b.xyxy[3] - b.xyxy[1]);
  const order = picture.boxes.map((_, i) => i).sort((a, b) => area(picture.boxes[b]) - area(picture.boxes[a]));
  for (const i of order) svg.append(parts[i].outline);
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
      parts[index].outline.style.display = visible && keep ? "" : "none";
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
