// The answer: what was found in the photo as boxes to tap, products as tiles, and what to say about them.

import { by } from "./server.js";

const [photo, boxes, chips] = ["photo", "boxes", "chips"].map(by);
const [status, error, empty, tiles, timings] = ["status", "error", "empty", "tiles", "timings"].map(by);

let shown = null;      // {answer, title} of the answer on the page
let whenMore = () => {};

export const onMore = (call) => { whenMore = call; };

export function waiting() {
  error.hidden = true;
  status.textContent = "Searching…";
}

export function idle() {
  shown = null;
  by("results-title").textContent = "Results";
  empty.textContent = "Search with a photo or words to see the products that match it.";
  empty.hidden = false;
  status.textContent = "";
  error.hidden = timings.hidden = by("look").hidden = true;
  tiles.replaceChildren();
}

export function fail(message) {
  error.textContent = message;
  error.hidden = false;
  status.textContent = "";
  empty.hidden = timings.hidden = by("look").hidden = true;
  tiles.replaceChildren();
}

export function show(answer, title, seen_ms) {
  shown = { answer, title };
  const items = answer.crops.map((crop, number) => ({ crop, number })).filter(({ number }) => number > 0);
  boxes.replaceChildren(...items.map(({ crop, number }) => boxButton(crop, number)));
  const parts = items.length ? [chip("Everything", null), ...items.map(({ crop, number }) => chip(`${number} ${nameOf(crop)}`, number))] : [];
  chips.replaceChildren(...parts);
  timings.textContent = Object.entries(answer.timings_ms).map(([name, ms]) => `${name} ${ms.toFixed(1)} ms`).join(" · ") +
    ` · seen here ${seen_ms.toFixed(0)} ms · release ${answer.release.id} · bundle ${answer.release.bundle}`;
  timings.hidden = false;
  choose(null);
  showLook(answer.look);
}

// What goes with the first result.
function showLook(look) {
  const items = look?.items ?? [];
  by("look").hidden = items.length === 0;
  by("look-tiles").replaceChildren(...items.map((item) => tile({ ...item, match: null, score: null, why: "" })));
}

function choose(number) {
  const { answer, title } = shown;
  const found = number === null ? answer.results : answer.crops[number].results;
  for (const button of document.querySelectorAll("[data-crop]")) {
    button.setAttribute("aria-pressed", String(button.dataset.crop === String(number)));
  }
  by("results-title").textContent = number === null ? title : `Results for item ${number}: ${nameOf(answer.crops[number])}`;
  tiles.replaceChildren(...found.map(tile));
  empty.hidden = found.length > 0;
  empty.textContent = "No match: nothing in the catalog looks enough like this. Try other filters, another photo, or mark one item in it.";
  const exact = found.filter((r) => r.match === "exact").length;
  status.textContent = [
    found.length === 1 ? "1 product" : `${found.length} products`,
    exact ? `${exact} exact` : "",
    answer.no_match && found.length ? "no match: these come nearest" : "",
    answer.stage === "hash" ? "known photo, found by its hash" : "found by looks",
    answer.partial ? `${answer.shards.asked - answer.shards.answered} of ${answer.shards.asked} shards did not answer, products may be missing` : "",
  ].filter(Boolean).join(" · ");
}

const nameOf = (crop) => (crop.category ?? crop.label ?? "item").split("/").pop();

// ---- parts of the photo ----

function boxButton(crop, number) {
  const button = partButton(number, `Item ${number}: ${nameOf(crop)}`);
  const [x0, y0, x1, y1] = crop.box;
  const place = () => {
    const [w, h] = [photo.naturalWidth || 1, photo.naturalHeight || 1];
    button.style.left = `${(100 * x0) / w}%`;
    button.style.top = `${(100 * y0) / h}%`;
    button.style.width = `${(100 * (x1 - x0)) / w}%`;
    button.style.height = `${(100 * (y1 - y0)) / h}%`;
  };
  photo.complete ? place() : photo.addEventListener("load", place, { once: true });
  const label = document.createElement("span");
  label.textContent = number;
  button.append(label);
  return button;
}

function chip(text, number) {
  const button = partButton(number, null);
  button.textContent = text;
  return button;
}

function partButton(number, label) {
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.crop = String(number);
  if (label) button.setAttribute("aria-label", label);
  button.addEventListener("click", () => choose(number));
  return button;
}

// ---- products ----

function tile(result) {
  const { attributes } = result;
  const item = by("tile").content.firstElementChild.cloneNode(true);
  const find = (selector) => item.querySelector(selector);
  const picture = result.image_url ?? (result.image_uri.startsWith("https:") ? result.image_uri : "");
  find("img").src = picture;
  find("img").alt = attributes.title;
  find(".badge").hidden = find(".score").hidden = !result.match;  // what goes with it was not searched for
  find(".badge").textContent = result.match;
  if (result.match) find(".badge").classList.add(result.match);
  find("h3").textContent = attributes.title;
  find(".maker").textContent = [attributes.brand, result.category?.split("/").pop(), attributes.color].filter(Boolean).join(" · ");
  find(".price").textContent = price(attributes);
  find(".stock").textContent = stock(attributes);
  find(".stock").classList.toggle("out", !attributes.available);
  find(".why").textContent = why(result);
  find(".score").textContent = result.score?.toFixed(3);
  find(".score").title = "score: cosine of the embeddings";
  find(".more").setAttribute("aria-label", `More like ${attributes.title}`);
  find(".more").addEventListener("click", () => whenMore(result.product_id, attributes.title, picture));
  return item;
}

// In words, and what the shop's rules added or took.
function why({ why: words, explain }) {
  const parts = Object.entries(explain?.parts ?? {}).filter(([, value]) => value !== 0);
  return [words, ...parts.map(([name, value]) => `${name} ${value > 0 ? "+" : "−"}${Math.abs(value).toFixed(3)}`)].join("; ");
}

function price({ price: amount, currency }) {
  if (amount === null) return "";
  try {
    return new Intl.NumberFormat(undefined, { style: "currency", currency: currency ?? "" }).format(amount);
  } catch {
    return [amount.toFixed(2), currency].filter(Boolean).join(" ");  // no currency, or one that is no ISO code
  }
}

function stock({ available, stock: pieces }) {
  if (!available) return "sold out";
  return pieces === null ? "in stock" : `${pieces} in stock`;
}
