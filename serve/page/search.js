// The search page: one photo in, products out. No build step, nothing from another host.
// The photo is drawn smaller on a canvas before it is sent, which also leaves its camera data behind.

const SEND_SIDE_PX = 640;  // longer side of what is sent: the encoders look at 128 to 448 px of a crop
const RESULTS = 24;

const by = (id) => document.getElementById(id);
const [drop, file, stage, photo, boxes, drawn] = ["drop", "file", "stage", "photo", "boxes", "drawn"].map(by);
const [chips, status, error, empty, tiles, timings] = ["chips", "status", "error", "empty", "tiles", "timings"].map(by);

let sent = null;      // the JPEG that was sent last, to search a part of it
let shown = null;     // {answer, title} of the answer on the page
let running = null;   // AbortController of the query under way

// ---- asking ----

async function shrink(blob) {
  const bitmap = await createImageBitmap(blob, { imageOrientation: "from-image" });
  const scale = Math.min(1, SEND_SIDE_PX / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#fff";  // see-through photos are searched on white, as the catalog's are
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
}

async function searchFile(blob) {
  if (!blob) return;
  let jpeg;
  try {
    jpeg = await shrink(blob);
  } catch {
    return fail("This browser cannot read that file as a photo. JPEG, PNG, WebP and GIF work.");
  }
  sent = jpeg;
  showPhoto(URL.createObjectURL(jpeg), "The photo you search with");
  await searchPhoto(null);
}

async function searchPhoto(box) {
  const form = new FormData();
  form.append("image", sent, "photo.jpg");
  form.append("k", RESULTS);
  if (box) form.append("box", box.map((n) => n.toFixed(1)).join(","));
  await ask("/v1/search", { method: "POST", body: form }, box ? "Results for the part you drew" : "Results");
}

async function searchProduct(id, title, picture) {
  sent = null;
  showPhoto(picture, title);
  await ask(`/v1/products/${encodeURIComponent(id)}/similar?k=${RESULTS}`, {}, `Similar to ${title}`);
  by("results-title").focus();
}

async function ask(url, options, title) {
  running?.abort();
  running = new AbortController();
  drop.classList.add("busy");
  error.hidden = true;
  status.textContent = "Searching…";
  const started = performance.now();
  try {
    const response = await fetch(url, { ...options, signal: running.signal });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.detail ?? `The server answered ${response.status}.`);
    show({ answer, title, seen_ms: performance.now() - started });
  } catch (problem) {
    if (problem.name === "AbortError") return;
    fail(problem instanceof TypeError ? "The server does not answer. Is it still running?" : problem.message);
  }
  drop.classList.remove("busy");
}

// ---- showing ----

function showPhoto(url, alt) {
  if (photo.src.startsWith("blob:")) URL.revokeObjectURL(photo.src);
  photo.src = url;
  photo.alt = alt;
  stage.hidden = false;
  by("invite").hidden = true;
  by("hint").hidden = !sent;
  stage.style.cursor = sent ? "crosshair" : "default";
  boxes.replaceChildren();
  chips.replaceChildren();
  drawn.hidden = true;
}

function fail(message) {
  error.textContent = message;
  error.hidden = false;
  status.textContent = "";
  empty.hidden = true;
  timings.hidden = true;
  tiles.replaceChildren();
  drop.classList.remove("busy");
}

function show(next) {
  shown = next;
  const { answer, title, seen_ms } = next;
  const items = answer.crops.map((crop, number) => ({ crop, number })).filter(({ number }) => number > 0);
  boxes.replaceChildren(...items.map(({ crop, number }) => boxButton(crop, number)));
  const parts = items.length ? [chip("Everything", null), ...items.map(({ crop, number }) => chip(`${number} ${nameOf(crop)}`, number))] : [];
  chips.replaceChildren(...parts);
  timings.textContent = Object.entries(answer.timings_ms).map(([name, ms]) => `${name} ${ms.toFixed(1)} ms`).join(" · ") +
    ` · seen here ${seen_ms.toFixed(0)} ms · release ${answer.release.id} · bundle ${answer.release.bundle}`;
  timings.hidden = false;
  choose(null);
  by("results-title").textContent = title;
}

function choose(number) {
  const { answer, title } = shown;
  const results = number === null ? answer.results : answer.crops[number].results;
  for (const button of document.querySelectorAll("[data-crop]")) {
    button.setAttribute("aria-pressed", String(button.dataset.crop === String(number)));
  }
  by("results-title").textContent = number === null ? title : `Results for item ${number}: ${nameOf(answer.crops[number])}`;
  tiles.replaceChildren(...results.map(tile));
  empty.hidden = results.length > 0;
  empty.textContent = "No match: nothing in the catalog looks enough like this. Try another photo, or drag over one item in it.";
  const exact = results.filter((r) => r.match === "exact").length;
  status.textContent = [
    results.length === 1 ? "1 product" : `${results.length} products`,
    exact ? `${exact} exact` : "",
    answer.stage === "hash" ? "known photo, found by its hash" : "found by looks",
    answer.partial ? `${answer.shards.asked - answer.shards.answered} of ${answer.shards.asked} shards did not answer, products may be missing` : "",
  ].filter(Boolean).join(" · ");
}

const nameOf = (crop) => (crop.category ?? crop.label ?? "item").split("/").pop();

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

function tile(result) {
  const { attributes } = result;
  const item = by("tile").content.firstElementChild.cloneNode(true);
  const find = (selector) => item.querySelector(selector);
  const picture = result.image_url ?? (result.image_uri.startsWith("https:") ? result.image_uri : "");
  find("img").src = picture;
  find("img").alt = attributes.title;
  find(".badge").textContent = result.match;
  find(".badge").classList.add(result.match);
  find("h3").textContent = attributes.title;
  find(".price").textContent = price(attributes);
  find(".stock").textContent = stock(attributes);
  find(".stock").classList.toggle("out", !attributes.available);
  find(".why").textContent = result.why;
  find(".score").textContent = result.score.toFixed(3);
  find(".score").title = "score: cosine of the embeddings";
  find(".more").setAttribute("aria-label", `More like ${attributes.title}`);
  find(".more").addEventListener("click", () => searchProduct(result.product_id, attributes.title, picture));
  return item;
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

// ---- choosing a photo: file, drop, paste ----

file.addEventListener("change", () => { searchFile(file.files[0]); file.value = ""; });
document.addEventListener("paste", (event) => {
  const pasted = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (pasted) searchFile(pasted);
});
document.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  searchFile(event.dataTransfer.files[0]);
});
photo.addEventListener("dragstart", (event) => event.preventDefault());

// ---- drawing a box over the photo ----

let start = null;
const point = (event) => {
  const frame = photo.getBoundingClientRect();
  const clamp = (value) => Math.min(1, Math.max(0, value));
  return [clamp((event.clientX - frame.left) / frame.width), clamp((event.clientY - frame.top) / frame.height)];
};
const span = (a, b) => [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];

stage.addEventListener("pointerdown", (event) => { if (sent && event.button === 0) start = point(event); });
document.addEventListener("pointermove", (event) => {
  if (!start) return;
  const [x0, y0, x1, y1] = span(start, point(event));
  drawn.hidden = x1 - x0 < 0.03 && y1 - y0 < 0.03;
  Object.assign(drawn.style, { left: `${100 * x0}%`, top: `${100 * y0}%`, width: `${100 * (x1 - x0)}%`, height: `${100 * (y1 - y0)}%` });
});
document.addEventListener("pointerup", (event) => {
  if (!start) return;
  const [x0, y0, x1, y1] = span(start, point(event));
  start = null;
  if (x1 - x0 < 0.03 || y1 - y0 < 0.03) return void (drawn.hidden = true);  // a click, not a box
  const [w, h] = [photo.naturalWidth, photo.naturalHeight];
  searchPhoto([x0 * w, y0 * h, x1 * w, y1 * h]);
});

// ---- which release answers ----

fetch("/v1/release").then((response) => response.json()).then((served) => {
  by("release").textContent = `release ${served.release.id}`;
  by("release").title = `${served.counts.products} products, ${served.counts.images} photos`;
}).catch(() => {});
