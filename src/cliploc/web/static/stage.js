// The picture of all names: its boxes stand over it, and the heat of a name shows where somebody points at it.

const large = document.createElement("dialog");  // a picture at its full size
large.setAttribute("aria-label", "The picture at its full size: press Escape or click to close it");
large.addEventListener("click", () => large.close());
document.body.append(large);

/** Places the boxes and listens; called for each new result. */
export function stage(results) {
  place(results);
  for (const one of results.querySelectorAll(".stage")) {
    const found = new Set([...one.querySelectorAll(".box:not(.unsure)")].map(box => box.dataset.name));
    let pinned = found.size === 1 ? [...found][0] : "";  // of a single name the heat shows at once
    show(one, pinned);
    const nameOf = event => event.target.closest("button[data-name]")?.dataset.name;
    for (const kind of ["pointermove", "focusin"]) {
      one.addEventListener(kind, event => show(one, nameOf(event) ?? boxAt(one.querySelector(".canvas"), event) ?? pinned));
    }
    for (const kind of ["pointerleave", "focusout"]) one.addEventListener(kind, () => show(one, pinned));
    one.addEventListener("click", event => {
      const name = nameOf(event);
      if (name === undefined) return;
      pinned = pinned === name ? "" : name;
      show(one, pinned);
    });
  }
}

/** Shows a picture of the results at its full size, with its boxes. */
export function enlarge(image) {
  large.replaceChildren((image.closest(".canvas") ?? image).cloneNode(true));
  place(large);
  large.showModal();
}

function place(where) {
  for (const canvas of where.querySelectorAll(".canvas")) {
    const { width, height } = canvas.querySelector("img").attributes;
    canvas.style.setProperty("--ratio", width.value / height.value);
  }
  for (const box of where.querySelectorAll(".box")) {
    const [left, top, right, bottom] = box.dataset.at.split(" ").map(Number);
    Object.assign(box.style, { left: `${left}%`, top: `${top}%`, width: `${right - left}%`, height: `${bottom - top}%` });
    box.classList.toggle("high", top < 6);  // its label stands inside
    box.classList.toggle("right", left > 60);  // and ends where the box does
  }
}

// The name of the smallest box at the pointer, which may be in several.
function boxAt(canvas, { clientX, clientY }) {
  const within = [];
  for (const box of canvas.querySelectorAll(".box")) {
    const { left, top, right, bottom, width, height } = box.getBoundingClientRect();
    if (left <= clientX && clientX <= right && top <= clientY && clientY <= bottom) within.push([width * height, box.dataset.name]);
  }
  return within.sort(([a], [b]) => a - b)[0]?.[1];
}

function show(one, name) {
  for (const heat of one.querySelectorAll(".heat")) heat.hidden = heat.dataset.name !== name;
  for (const box of one.querySelectorAll(".box")) box.classList.toggle("other", name !== "" && box.dataset.name !== name);
  for (const button of one.querySelectorAll("[aria-pressed]")) button.setAttribute("aria-pressed", button.dataset.name === name);
}
