"use strict";
for (const box of document.querySelectorAll(".compare")) {
  const slider = box.querySelector("input");
  const wipe = () => box.style.setProperty("--wipe", slider.value + "%");
  slider.addEventListener("input", wipe);
  wipe();
}
const button = document.getElementById("theme");
button.hidden = false;
button.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
const large = document.getElementById("large");
if (large) {
  document.addEventListener("click", (event) => {
    const figure = event.target.closest(".panels figure, .trio figure");
    if (figure) {
      large.replaceChildren(figure.cloneNode(true));
      large.showModal();
    } else if (large.open) {
      large.close();
    }
  });
}
addEventListener("beforeprint", () => document.querySelectorAll("details.printed").forEach((part) => { part.open = true; }));
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") === "descending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => row.cells[column].dataset.key;
    const order = (a, b) => isNaN(key(a)) || isNaN(key(b)) ? key(a).localeCompare(key(b)) : key(a) - key(b);
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort((a, b) => (up ? 1 : -1) * order(a, b)));
  }));
}
