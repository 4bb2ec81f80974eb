// Sorts and filters tables. The page is complete without it.
"use strict";
const worth = (row, i) => {
  const cell = row.cells[i];
  const value = cell.dataset.v;
  return value === undefined ? cell.textContent.trim() : Number(value);
};
const compare = (a, b) => {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a !== typeof b) return typeof a === "number" ? 1 : -1; // a dash is less than any number
  return a.localeCompare(b, "en", { numeric: true });
};
for (const table of document.querySelectorAll("table.sort")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const down = before ? before === "ascending" : head.classList.contains("n");
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => (down ? -1 : 1) * compare(worth(a, i), worth(b, i)));
      table.tBodies[0].append(...rows);
    });
  });
}
for (const table of document.querySelectorAll("table.search")) {
  const label = document.createElement("label");
  const input = document.createElement("input");
  label.className = "find";
  input.type = "search";
  input.placeholder = table.dataset.search;
  input.setAttribute("aria-label", table.dataset.search);
  label.append(input);
  table.parentElement.before(label);
  input.addEventListener("input", () => {
    const wanted = input.value.trim().toLowerCase();
    for (const row of table.tBodies[0].rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
}
