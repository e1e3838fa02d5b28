"use strict";
const tools = document.querySelector(".tools");
const search = tools.querySelector("input");
const buttons = [...tools.querySelectorAll("button")];
const checks = [...document.querySelectorAll(".check")];
const shown = tools.querySelector("output");
function filter() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const verdicts = buttons.filter((b) => b.getAttribute("aria-pressed") === "true");
  const wanted = new Set(verdicts.map((b) => b.value));
  let count = 0;
  for (const check of checks) {
    const text = check.querySelector("summary").textContent.toLowerCase();
    const fits = words.every((word) => text.includes(word));
    check.hidden = !fits || (wanted.size > 0 && !wanted.has(check.dataset.verdict));
    count += !check.hidden;
  }
  shown.textContent = `${count} of ${checks.length} shown`;
}
search.addEventListener("input", filter);
for (const button of buttons) {
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
    filter();
  });
}
addEventListener("beforeprint", () => {
  for (const check of checks) check.open = check.dataset.verdict !== "not_applicable";
});
if (location.hash.startsWith("#G")) {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target) target.open = true;
}
addEventListener("hashchange", () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && "open" in target) target.open = true;
});
tools.hidden = false;
filter();
