// The judging page: one photo, the products that any search found for it, a grade for each. Quick by keyboard.

import { api, by, photoOf } from "./server.js";

const GRADES = ["wrong", "similar", "very similar", "same item"];
const tiles = by("tiles");
let task = null;         // the answer of /v1/judgments/next
let grades = new Map();  // product_id → number of the grade

async function next() {
  by("error").hidden = true;
  try {
    show(await api(`/v1/judgments/next?rater=${encodeURIComponent(by("rater").value.trim())}`));
  } catch (problem) {
    fail(problem.message);
  }
}

async function show(answer) {
  task = answer;
  grades = new Map();
  by("progress").textContent = `${task.done} of ${task.total} photos judged`;
  by("shown").hidden = by("keys").hidden = by("send").hidden = !task.query;
  by("empty").hidden = Boolean(task.query);
  by("empty").textContent = task.total
    ? "You have judged everything. Thank you."
    : "There is nothing to judge yet: python -m jobs.evaluate_search puts photos and what was found for them here.";
  tiles.replaceChildren(...task.items.map(tile));
  by("send").disabled = true;
  if (!task.query) return;
  by("photo").src = await photoOf(task.query_url);
  tiles.firstElementChild?.focus();
}

function tile(item) {
  const place = by("tile").content.firstElementChild.cloneNode(true);
  place.dataset.product = item.product_id;
  place.querySelector("img").src = item.image_url ?? "";
  place.querySelector("img").alt = item.title ?? item.product_id;
  place.querySelector("h3").textContent = item.title ?? item.product_id;
  place.querySelector("legend").textContent = `Grade of ${item.title ?? item.product_id}`;
  GRADES.forEach((name, grade) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "button";
    button.textContent = name;
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => give(place, grade));
    place.querySelector("fieldset").append(button);
  });
  return place;
}

function give(place, grade) {
  grades.set(place.dataset.product, grade);
  place.querySelectorAll("button").forEach((button, number) => button.setAttribute("aria-pressed", String(number === grade)));
  by("send").disabled = grades.size < task.items.length;
  const open = [...tiles.children].find((one) => !grades.has(one.dataset.product));
  (open ?? by("send")).focus();
}

async function send() {
  if (!task?.query || grades.size < task.items.length) return;
  by("send").disabled = true;
  const body = JSON.stringify({ rater: by("rater").value.trim(), query: task.query, grades: Object.fromEntries(grades) });
  try {
    await api("/v1/judgments", { method: "POST", headers: { "content-type": "application/json" }, body });
  } catch (problem) {
    by("send").disabled = false;
    return fail(problem.message);
  }
  await next();
}

function fail(message) {
  by("error").textContent = message;
  by("error").hidden = false;
}

by("who").addEventListener("submit", (event) => { event.preventDefault(); next(); });
by("send").addEventListener("click", send);
document.addEventListener("keydown", (event) => {
  if (event.target.matches("input") || event.ctrlKey || event.metaKey || event.altKey) return;
  const place = event.target.closest(".tile");
  const grade = ["1", "2", "3", "4"].indexOf(event.key);
  if (place && grade >= 0) return give(place, grade);
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (place && step) {
    event.preventDefault();
    return (step > 0 ? place.nextElementSibling : place.previousElementSibling)?.focus();
  }
  if (event.key === "Enter" && !event.target.matches("button")) send();
});
