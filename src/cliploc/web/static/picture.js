// A field for a picture: it is dropped, pasted or chosen, or an example of the page.

export class PictureField {
  #file = null;  // of this machine
  #id = "";  // by which the server knows it
  #url = "";  // of the picture that is shown

  constructor(element, refuse) {
    this.refuse = refuse;
    this.input = element.querySelector("input[type=file]");
    this.line = element.querySelector(".chosen");
    this.image = this.line.querySelector("img");
    this.name = this.line.querySelector("span");
    this.input.addEventListener("change", () => this.input.files.length && this.choose(this.input.files[0]));
    this.line.querySelector("button").addEventListener("click", () => { this.#show(null, "", "", ""); this.input.focus(); });
    this.image.addEventListener("load", () => (this.image.hidden = false));
    this.image.addEventListener("error", () => (this.image.hidden = true));  // a kind that browsers do not show
    for (const kind of ["dragenter", "dragover"]) {
      element.addEventListener(kind, event => { event.preventDefault(); element.classList.add("over"); });
    }
    for (const kind of ["dragleave", "drop"]) element.addEventListener(kind, () => element.classList.remove("over"));
    element.addEventListener("paste", event => this.paste(event));
  }

  /** Takes the picture of a paste, if there is one. */
  paste(event) {
    const file = event.clipboardData?.files[0];
    if (!file?.type.startsWith("image/")) return;
    event.preventDefault();
    event.stopPropagation();
    this.choose(file);
  }

  /** A file of this machine. */
  choose(file) {
    if (file.type && !file.type.startsWith("image/")) return this.refuse(file.name);  // some kinds of pictures have no type
    this.#show(file, "", file.name, URL.createObjectURL(file));
  }

  /** One of the page's examples. */
  example(name) {
    this.#show(null, name, name, `/examples/${name}`);
  }

  /** The picture of another field. */
  same(other) {
    if (other.#file) this.choose(other.#file);
    else if (other.#id) this.example(other.#id);
  }

  /** What a request names it by: the server's id, or else the file; "" where there is none. */
  get given() {
    return this.#id || this.#file || "";
  }

  /** Where it is shown from: that of another picture is another, also where files have the same name. */
  get url() {
    return this.#url;
  }

  /** The server knows its file by this id; "" if it does not any longer, and the file must be sent again. */
  known(id) {
    if (this.#file) this.#id = id;
  }

  #show(file, id, name, url) {
    if (this.#url.startsWith("blob:")) URL.revokeObjectURL(this.#url);
    this.#file = file;
    this.#id = id;
    this.#url = url;
    this.image.hidden = true;
    url ? (this.image.src = url) : this.image.removeAttribute("src");
    this.name.textContent = name;
    this.line.hidden = !name;
    this.input.value = "";
  }
}

/** Writes the box that is dragged on a field's picture into an input: left top right bottom in its pixels. */
export function drawn(field, input) {
  const image = field.querySelector("img"), frame = document.createElement("i");
  frame.className = "frame";
  frame.hidden = true;
  image.parentElement.append(frame);
  image.draggable = false;
  let start = null, box = null;  // shares of the picture's sides
  const at = event => {
    const { left, top, width, height } = image.getBoundingClientRect();
    const inside = (value, size) => Math.min(Math.max(value / size, 0), 1);
    return [inside(event.clientX - left, width), inside(event.clientY - top, height)];
  };
  const place = () => {
    frame.hidden = !box;
    if (!box) return;
    const { offsetLeft, offsetTop, offsetWidth, offsetHeight } = image, [x0, y0, x1, y1] = box, px = value => `${value}px`;
    Object.assign(frame.style, { left: px(offsetLeft + x0 * offsetWidth), top: px(offsetTop + y0 * offsetHeight),
      width: px((x1 - x0) * offsetWidth), height: px((y1 - y0) * offsetHeight) });
  };
  const set = edges => {
    box = edges;
    const { naturalWidth, naturalHeight } = image;
    input.value = edges?.map((edge, side) => Math.round(edge * (side % 2 ? naturalHeight : naturalWidth))).join(" ") ?? "";
    place();
  };
  image.addEventListener("pointerdown", event => { start = at(event); image.setPointerCapture(event.pointerId); event.preventDefault(); });
  image.addEventListener("pointermove", event => {
    if (!start) return;
    const [x, y] = at(event);
    set([Math.min(start[0], x), Math.min(start[1], y), Math.max(start[0], x), Math.max(start[1], y)]);
  });
  for (const kind of ["pointerup", "pointercancel"]) image.addEventListener(kind, () => (start = null));
  image.addEventListener("load", () => set(null));  // another picture
  input.addEventListener("input", () => { box = null; place(); });
  new ResizeObserver(place).observe(image);
}
