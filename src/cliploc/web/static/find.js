// The find page: Find and the sliders ask /api/show, the menus /api/menu, the downloads /api/files.

import { Refusal, get, jsonOf, lastLine, post } from "./ask.js";
import { apply, settings, watch } from "./controls.js";
import { PictureField, drawn } from "./picture.js";
import { enlarge, stage } from "./stage.js";

const NO_PICTURE = "expected a picture, got none: drop one on the page or pick an example";
const STOPPED = "Stopped, as you asked.";
const OWN = ["threshold", "split_peaks", "min_score", "min_presence"];  // what a method has values of its own for

const at = selector => document.querySelector(selector);
const page = at("#page"), status = at("#status"), results = at("#results"), files = at("#files");
// The page's name for itself, which nobody can guess: the server keeps its last results under it.
const visitor = [...crypto.getRandomValues(new Uint8Array(16))].map(byte => byte.toString(16).padStart(2, "0")).join("");
const pictures = { picture: new PictureField(at("#picture"), refuse), exemplar: new PictureField(at("#exemplar"), refuse) };
let running = null;  // ends the search, or the writing of files, that goes on
let moves = 0, chosen = 0;  // of sliders, of menus
let shown = { name: "", url: "" };  // the result on the page: of which picture it is, and the settings that were asked for
let adjusting = Promise.resolve();
let ofExample = "";  // the names that an example has filled in; those that somebody typed, or a link has, stay

// ------------------------------------------------------------------------------------------------------- status line
function say({ kind, text, progress, counted }) {
  const again = kind === "busy" && status.firstElementChild?.className === "busy";
  status.setAttribute("aria-busy", again);  // a screen reader reads the first line of a search, and how it ends
  const line = document.createElement("p");
  line.className = kind;
  const stale = kind !== "busy" && page.dataset.state === "found" && shown.url !== pictures.picture.url;
  line.textContent = stale ? `${text.replace(/\.?$/, ".")} The result below is still that of ${shown.name}.` : text;
  if (kind === "problem") line.setAttribute("role", "alert");
  if (progress !== undefined) {
    const bar = document.createElement("progress");
    bar.value = progress;
    bar.setAttribute("aria-label", counted);
    line.append(" ", bar);
  }
  status.replaceChildren(line);
}

function sayProblem(error) {
  if (error.name === "AbortError") return say({ kind: "done", text: STOPPED });
  if (!(error instanceof Refusal)) console.error(error);
  say({ kind: "problem", text: error.message });
}

function refuse(name) {
  say({ kind: "problem", text: `${name} is not a picture: choose a photograph, such as a JPEG or PNG` });
}

// -------------------------------------------------------------------------------------------------- find and adjust
async function asked(fields, signal) {
  const given = settings();
  return { ...await lastLine(await post("/api/show", { ...given, visitor, ...fields }, signal), line => say(line.status)), given };
}

function show({ status: said, figures, json, python, command, address, given }, of = shown) {
  if (figures !== undefined) shown = { ...of, given };
  say(said);
  if (figures === undefined) return;
  const unfolded = results.querySelector("details")?.open;
  results.innerHTML = figures;  // of a template that escapes what was typed; the page's policy allows no script in it
  results.querySelector("details").open = unfolded;
  stage(results);
  page.dataset.state = "found";
  files.replaceChildren();
  // The address bar shows the settings of the page, so that a copied address opens the same.
  history.replaceState(null, "", address);
  const lines = { json, python, command, address: location.href };
  for (const [name, text] of Object.entries(lines)) at(`#${name}`).value = text;
}

async function search(signal, again = true) {
  await opened;  // with the settings of the address
  const given = Object.fromEntries(Object.entries(pictures).map(([name, field]) => [name, field.given])), before = moves;
  const of = { name: pictures.picture.name.textContent, url: pictures.picture.url };
  try {
    const answer = await asked(given, signal);
    for (const [name, id] of Object.entries(answer.ids)) {
      if (pictures[name].given === given[name]) pictures[name].known(id);
    }
    show(answer, of);
    if (moves !== before) adjust();  // a slider was moved meanwhile
  } catch (error) {
    if (error.status !== 404 || !again) throw error;
    for (const field of Object.values(pictures)) field.known("");  // the server has forgotten it: it is sent again
    await search(signal, false);
  }
}

// One thing at a time that Stop ends; while it goes on, pressing the button again does nothing.
async function alone(line, work) {
  if (running) return;
  running = new AbortController();
  at("#stop").disabled = false;
  say({ kind: "busy", text: line });
  try {
    await work(running.signal);
  } catch (error) {
    sayProblem(error);
  } finally {
    running = null;
    if (document.activeElement === at("#stop")) at("#find").focus();  // else the keys would begin at the top
    at("#stop").disabled = true;
  }
}

async function find() {
  if (running) return;
  if (!pictures.picture.given) return say({ kind: "problem", text: NO_PICTURE });
  if (page.dataset.state === "empty") page.dataset.state = "searching";
  const done = alone("Waiting for the model …", search);
  reveal();
  await done;
  if (page.dataset.state === "searching") page.dataset.state = "empty";  // nothing was found out
  reveal();
}

// On a telephone the status line and the results are out of sight.
function reveal() {
  const { top } = status.getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) status.scrollIntoView({ block: "start" });
}

// A slider was moved. One request at a time; of moves that wait for it, the last counts.
async function adjust() {
  const move = ++moves;
  if (page.dataset.state !== "found") return;
  await adjusting;
  if (move !== moves) return;
  const of = shown;
  adjusting = asked({}).then(answer => {
    if (of === shown) show(answer);
    else adjust();  // it is of the search before
  }, sayProblem);
}

// --------------------------------------------------------------------------------------------------------- the menus
async function choose(name) {
  const { model, method, refine, compare } = settings();
  const other = name === "model", wanted = other ? { model } : { model, method, refine, compare };
  if (!other && !["method", "refine", "compare"].includes(name)) return;
  const choice = ++chosen;
  try {
    const menu = await get(`/api/menu?${new URLSearchParams(wanted)}`);
    if (choice !== chosen) return;  // another choice was made meanwhile
    if (menu.problem) throw new Refusal(422, menu.problem);
    apply(menu, other ? ["method", "compare", "refine", ...OWN] : name === "compare" ? [] : OWN);
    await adjust();
  } catch (error) {
    sayProblem(error);
  }
}

async function open() {
  apply(JSON.parse(at("#menu").textContent));
  if (!location.search) return;
  const typed = at("#names").value;
  const menu = await get(`/api/menu${location.search}`);
  if (at("#names").value !== typed) menu.values.names = at("#names").value;  // what was typed meanwhile stays
  apply(menu);
  if (menu.problem) return say({ kind: "problem", text: menu.problem });
  const filled = [...new URLSearchParams(location.search)].map(([name, value]) => `${name.replaceAll("_", " ")}: ${value}`);
  say({ kind: "done", text: `This link has filled in ${filled.join("; ")}. Choose a picture, and press Find.` });
}

// --------------------------------------------------------------------------------------------------------- downloads
async function makeFiles(signal) {
  const of = shown, { files: made } = await jsonOf(await post("/api/files", { ...of.given, visitor }, signal));
  if (of !== shown) return say({ kind: "problem", text: "Something was adjusted meanwhile: create the files again." });
  files.replaceChildren(...made.map(({ name, address, bytes }) => {
    const item = document.createElement("li"), link = document.createElement("a");
    Object.assign(link, { href: address, download: name, textContent: name });
    item.append(link, ` ${bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`}`);
    return item;
  }));
  say({ kind: "done", text: `${made.length} files are ready.` });
}

async function copy(button) {
  const field = at(`#${button.dataset.copies}`);
  field.select();  // where the browser allows no copying, as on plain HTTP, Ctrl+C does it
  const copied = await navigator.clipboard?.writeText(field.value).then(() => true, () => false);
  button.textContent = copied ? "Copied" : "Press Ctrl+C";
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

// Text that is dragged into a text field.
function isText({ target, dataTransfer }) {
  return target.matches?.("textarea, input:not([type=file])") && !dataTransfer.types.includes("Files");
}

// A picture that is dropped beside the fields is the one to search.
function drop(event) {
  if (isText(event)) return;
  event.preventDefault();
  const field = pictures[event.target.closest?.(".drop")?.id] ?? pictures.picture, [file] = event.dataTransfer.files;
  if (file) field.choose(file);
  else say({ kind: "problem", text: "expected a file, got something else: copy the picture and paste it, or save it" });
}

// ------------------------------------------------------------------------------------------------------------ events
at("#settings").addEventListener("submit", event => { event.preventDefault(); find(); });
at("#names").addEventListener("keydown", event => {
  if (event.key === "Enter" && (event.shiftKey || event.ctrlKey || event.metaKey)) { event.preventDefault(); find(); }
});
at("#stop").addEventListener("click", () => running?.abort());
at("#make").addEventListener("click", () => alone("Writing the files …", makeFiles));
at("#examples").addEventListener("click", event => {
  const example = event.target.closest("button");
  if (!example || running) return;
  pictures.picture.example(example.value);
  if (!at("#names").value.trim() || at("#names").value === ofExample) at("#names").value = ofExample = example.dataset.names;
  find();
});
results.addEventListener("click", event => event.target.matches("img") && enlarge(event.target));
at("#same").addEventListener("click", () => pictures.exemplar.same(pictures.picture));
drawn(at("#exemplar"), at("[name=exemplar_box]"));
for (const button of document.querySelectorAll("[data-copies]")) button.addEventListener("click", () => copy(button));
document.addEventListener("paste", event => pictures.picture.paste(event));
document.addEventListener("dragover", event => isText(event) || event.preventDefault());
document.addEventListener("drop", drop);
watch(adjust, choose);
const opened = open().catch(sayProblem);
