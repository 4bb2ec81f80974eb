// The settings: read from the page's controls, and set to what the server says of a model.

const form = document.querySelector("#settings");
let own = {};  // the method's own values of sliders, which are not sent: another method has others

/** All settings, lists as names with commas. */
export function settings() {
  const found = {};
  for (const control of form.elements) {
    if (control.type === "checkbox") {
      found[control.name] ??= "";
      if (control.checked) found[control.name] += (found[control.name] && ",") + control.value;
    } else if (control.name) {
      found[control.name] = control.value;
    }
  }
  for (const [name, value] of Object.entries(own)) if (Number(found[name]) === value) found[name] = "";
  return found;
}

/** Offers these choices, and sets these of the values, or all; "" of a slider is the method's own value. */
export function apply({ choices, values, own: ofMethod }, names = Object.keys(values)) {
  own = Object.fromEntries(Object.entries(ofMethod).map(([name, value]) => [name, Number(value.toFixed(4))]));
  for (const name of ["method", "masks_by"]) fillMenu(form.elements.namedItem(name), choices[name]);
  for (const name of ["compare", "refine"]) fillBoxes(name, choices[name]);
  for (const name of names) set(name, values[name] === "" ? own[name] ?? "" : values[name]);
}

/** Calls back when a slider is moved, and when an option is chosen. */
export function watch(moved, chosen) {
  for (const slider of document.querySelectorAll(".slider")) {
    const [number, range] = slider.querySelectorAll("input");
    range.addEventListener("input", () => { number.value = range.value; moved(); });
    number.addEventListener("change", () => {
      if (!number.value || !number.checkValidity()) number.value = range.value;
      range.value = number.value;
      moved();
    });
  }
  for (const name of ["masks", "masks_by"]) form.elements.namedItem(name).addEventListener("change", moved);
  document.querySelector("#options").addEventListener("change", event => chosen(event.target.name));
}

function set(name, value) {
  if (["compare", "refine"].includes(name)) {
    for (const box of boxes(name)) box.checked = value.includes(box.value);
    return;
  }
  const control = form.elements.namedItem(name);
  control.value = value;
  const range = control.parentElement.querySelector("input[type=range]");
  if (range) range.value = value;
}

function fillMenu(menu, choices) {
  const before = menu.value;
  menu.replaceChildren(...choices.map(([value, text]) => new Option(text, value)));
  if (choices.some(([value]) => value === before)) menu.value = before;
}

function fillBoxes(name, choices) {
  const chosen = boxes(name).filter(box => box.checked).map(box => box.value);
  const labels = choices.map(([value, text]) => {
    const label = document.createElement("label"), box = document.createElement("input");
    Object.assign(box, { type: "checkbox", name, value, checked: chosen.includes(value) });
    label.append(box, text);
    return label;
  });
  const group = document.querySelector(`[data-choices=${name}]`);
  if (labels.map(one => one.textContent).join() !== [...group.querySelectorAll("label")].map(one => one.textContent).join()) {
    group.replaceChildren(group.querySelector("legend"), ...labels);  // else what has the focus keeps it
  }
}

function boxes(name) {
  return [...form.querySelectorAll(`input[type=checkbox][name=${name}]`)];
}
