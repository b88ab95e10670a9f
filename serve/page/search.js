// The search page: a photo, words or a product in, products out. No build step, nothing from another host.
// This file holds what is searched for and asks the server; photo.js, filters.js, results.js and device.js do the rest.

import * as device from "./device.js";
import * as filters from "./filters.js";
import { offerCamera, photoPart, prepare } from "./photo.js";
import * as results from "./results.js";
import { api, by } from "./server.js";

const RESULTS = 24;

// What is searched for: at most one of photo, product and url; words alone or beside it. `box` is in pixels of the photo shown.
const wanted = { photo: null, product: null, url: null, words: "", box: null };
let running = null;  // AbortController of the query under way
let served = null;   // /v1/release
let network = null;  // /v1/device
let shownQuery = null;  // query_id of the answer on the page

const onDevice = () => by("device").checked;

// ---- asking ----

async function request() {
  const common = { k: RESULTS, explain: true, look: true, ...filters.chosen() };
  if (wanted.words) common.text = wanted.words;
  if (wanted.photo && onDevice()) {
    const embedding = await device.embed(network, wanted.photo.canvas, wanted.box);
    return asJson({ ...common, embedding, bundle_digest: network.bundle_digest });
  }
  if (wanted.photo) {
    const form = new FormData();
    form.append("image", wanted.photo.jpeg, "photo.jpg");
    for (const [name, value] of Object.entries(common)) form.append(name, typeof value === "object" ? JSON.stringify(value) : value);
    if (wanted.box) form.append("box", wanted.box.map((n) => n.toFixed(1)).join(","));
    return { method: "POST", body: form };
  }
  if (wanted.url) return asJson({ ...common, image_url: wanted.url, ...(wanted.box ? { box: wanted.box } : {}) });
  if (wanted.product) return asJson({ ...common, product_id: wanted.product.id });
  return wanted.words ? asJson(common) : null;
}

const asJson = (body) => ({ method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });

function title() {
  const words = wanted.words && `“${wanted.words}”`;
  if (wanted.product) return [`Similar to ${wanted.product.title}`, words].filter(Boolean).join(", but ");
  if (wanted.box) return ["Results for the part you drew", words].filter(Boolean).join(" and ");
  return words ? `Results for ${wanted.photo || wanted.url ? "your photo and " : ""}${words}` : "Results";
}

async function search() {
  running?.abort();
  const mine = running = new AbortController();
  by("drop").classList.add("busy");
  results.waiting();
  const started = performance.now();
  try {
    const sent = await request();
    if (mine.signal.aborted) return;
    if (!sent) return results.idle();
    const answer = await api("/v1/search", { ...sent, signal: mine.signal });
    shownQuery = answer.query_id;
    results.show(answer, title(), performance.now() - started);
    filters.learn(answer);
    if (wanted.photo && onDevice()) {
      say(`The photo did not leave this device: ${new Blob([sent.body]).size.toLocaleString()} bytes of numbers were sent, no picture.`);
    }
  } catch (problem) {
    if (problem.name !== "AbortError") results.fail(problem.message);
  } finally {
    if (running === mine) by("drop").classList.remove("busy");
  }
}

// ---- what is searched for ----

async function searchFile(blob) {
  if (!blob) return;
  try {
    wanted.photo = await prepare(blob);
  } catch {
    return results.fail("This browser cannot read that file as a photo. JPEG, PNG, WebP and GIF work.");
  }
  Object.assign(wanted, { product: null, url: null, box: null });
  photoPart.show(URL.createObjectURL(wanted.photo.jpeg), "The photo you search with", true);
  tellPrivacy();
  await search();
}

async function searchProduct(id, name, picture) {
  tellClick(id);
  Object.assign(wanted, { photo: null, url: null, box: null, product: { id, title: name } });
  photoPart.show(picture, name, false);
  await search();
  by("results-title").focus();
}

// What was opened, so that the shop's ranking can learn; known by the random id of the answer alone.
function tellClick(id) {
  if (!shownQuery) return;
  const body = JSON.stringify({ events: [{ query_id: shownQuery, product_id: id, kind: "click" }] });
  api("/v1/feedback", { method: "POST", headers: { "content-type": "application/json" }, body }).catch(() => {});
}

function tellPrivacy() {
  say(onDevice()
    ? "Your photo stays on this device: the network runs in your browser, and only the numbers it makes of the photo are sent."
    : "The photo is made smaller in your browser, loses its camera data there, and is kept in memory only while it is searched.");
}

const say = (text) => { by("privacy").textContent = text; };

async function switchDevice() {
  tellPrivacy();
  if (onDevice()) {
    try {
      say("Loading the network…");
      await device.open(network);
    } catch (problem) {
      by("device").checked = false;
      return results.fail(`The network cannot run in this browser: ${problem.message}`);
    }
    tellPrivacy();
  }
  if (wanted.photo) await search();
}

// ---- wiring ----

by("file").addEventListener("change", () => { searchFile(by("file").files[0]); by("file").value = ""; });
by("words").addEventListener("submit", (event) => {
  event.preventDefault();
  wanted.words = by("text").value.trim();
  search();
});
by("address").addEventListener("submit", (event) => {
  event.preventDefault();
  Object.assign(wanted, { photo: null, product: null, box: null, url: by("url").value.trim() });
  photoPart.show(wanted.url, "The photo at that address", true);
  search();
});
by("clear").addEventListener("click", () => {
  Object.assign(wanted, { photo: null, product: null, url: null, box: null });
  photoPart.hide();
  tellPrivacy();
  search();
  by("file").focus();
});
by("device").addEventListener("change", switchDevice);
filters.onChange(search);
results.onMore(searchProduct);
photoPart.onBox((box) => { wanted.box = box; search(); });
offerCamera(searchFile);

document.addEventListener("paste", (event) => {
  const pasted = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (pasted) searchFile(pasted);
});
const drop = by("drop");
document.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  searchFile(event.dataTransfer.files[0]);
});

// ---- what this server offers ----

// The switch appears when the network is there: the server writes it when it is first asked for, and says "not ready" meanwhile.
async function offerDevice() {
  while (!network) {
    try {
      network = await api("/v1/device");
    } catch (problem) {
      if (problem.code !== "not_ready") return;  // photos are sent, as without the switch
      await new Promise((resolve) => setTimeout(resolve, 3000));
    }
  }
  by("device-switch").hidden = false;
}

tellPrivacy();
try {
  served = await api("/v1/release");
  by("release").textContent = `release ${served.release.id}`;
  by("release").title = `${served.counts.products} products, ${served.counts.images} photos`;
  by("words").hidden = !served.offers.text;
  by("address").hidden = !served.offers.image_url;
  filters.offer(served.partitions);
  if (served.offers.device) offerDevice();
} catch (problem) {
  results.fail(problem.message);
}
