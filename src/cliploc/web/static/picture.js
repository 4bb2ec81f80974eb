// A field for a picture: it is dropped, pasted or chosen, or an example of the page.

export class PictureField {
  #file = null;  // of this machine
  #id = "";  // by which the server knows it
  #url = "";  // of the picture that is shown

  constructor(element) {
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
    this.#show(file, "", file.name, URL.createObjectURL(file));
  }

  /** One of the page's examples. */
  example(name) {
    this.#show(null, name, name, `/examples/${name}`);
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
