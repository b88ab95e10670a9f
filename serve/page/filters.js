// Which products may be answered. Values to choose from are learned from the answers seen on this page.

import { by } from "./server.js";

const form = by("filter-form");

// {filters, category} of a query, without what is not set.
export function chosen() {
  const given = new FormData(form);
  const filters = {};
  for (const name of ["price_min", "price_max"]) if (given.get(name)) filters[name] = Number(given.get(name));
  for (const name of ["brand", "gender"]) if (given.get(name).trim()) filters[name] = given.get(name).trim();
  if (given.get("available")) filters.available = true;
  const category = given.get("category").trim();
  const num = Object.keys(filters).length + (category ? 1 : 0);
  by("num-filters").textContent = num ? `(${num})` : "";
  return { ...(Object.keys(filters).length ? { filters } : {}), ...(category ? { category } : {}) };
}

export function onChange(call) {
  form.addEventListener("change", () => { if (form.reportValidity()) call(); });
  form.addEventListener("reset", () => setTimeout(call));  // after the fields are empty
  form.addEventListener("submit", (event) => event.preventDefault());
}

export function offer(partitions) {
  add("categories", partitions.flatMap((one) => one.categories ?? []));
}

export function learn(answer) {
  const results = [answer, ...answer.crops].flatMap((one) => one.results);
  add("brands", results.map((one) => one.attributes.brand));
  add("genders", results.map((one) => one.attributes.gender));
  add("categories", results.flatMap((one) => (one.category ?? "").split("/").map((_, n, parts) => parts.slice(0, n + 1).join("/"))));
}

function add(list, values) {
  const options = by(list);
  const known = new Set([...options.options].map((one) => one.value));
  for (const value of new Set(values)) {
    if (value && !known.has(value)) options.append(new Option(value, value));
  }
}
