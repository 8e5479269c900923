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
