// The API's description as a page, drawn from /openapi.json: no third-party host, no build step.

const main = document.getElementById("docs");

function make(tag, text, ...children) {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  element.append(...children);
  return element;
}

const pretty = (value) => make("pre", JSON.stringify(value, null, 2));

function follow(api, schema) {
  const name = schema?.$ref?.split("/").pop();
  return name ? { name, ...api.components.schemas[name] } : schema ?? {};
}

function typeOf(api, schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map((one) => typeOf(api, one)).filter((one) => one !== "null").join(" or ");
  if (schema.const ?? schema.enum) return [schema.const ?? schema.enum].flat().map((one) => `"${one}"`).join(" or ");
  if (schema.type === "array") return schema.items ? `list of ${typeOf(api, schema.items)}` : "list";
  return schema.type ?? "any";
}

function fields(api, schema) {
  const list = make("dl");
  for (const [name, field] of Object.entries(schema.properties ?? {})) {
    const required = schema.required?.includes(name) ? ", required" : "";
    list.append(make("dt", "", make("code", name)), make("dd", `${typeOf(api, field)}${required}. ${field.description ?? ""}`));
  }
  return list;
}

function content(api, parts) {
  const shown = [];
  for (const [media, part] of Object.entries(parts ?? {})) {
    const schema = follow(api, part.schema);
    shown.push(make("p", "", make("code", media), schema.name ? ` ${schema.name}` : ""));
    if (schema.properties) shown.push(fields(api, schema));
    const example = part.example ?? Object.values(part.examples ?? {})[0]?.value ?? schema.examples?.[0];
    if (example) shown.push(pretty(example));
  }
  return shown;
}

function operation(api, path, verb, call) {
  const title = make("h3", "", make("span", verb.toUpperCase()), make("code", path));
  title.firstChild.className = "verb";
  const article = make("article", "", title, make("p", call.description ?? call.summary ?? ""));
  if (call.parameters?.length) {
    const list = make("dl");
    for (const one of call.parameters) {
      list.append(make("dt", "", make("code", one.name)), make("dd", `${one.in}, ${typeOf(api, one.schema)}. ${one.description ?? ""}`));
    }
    article.append(list);
  }
  if (call.requestBody) article.append(make("details", "", make("summary", "What to send"), ...content(api, call.requestBody.content)));
  for (const [code, answer] of Object.entries(call.responses)) {
    article.append(make("details", "", make("summary", `${code} ${answer.description}`), ...content(api, answer.content)));
  }
  return article;
}

const api = await (await fetch("/openapi.json")).json();
main.replaceChildren(make("h2", `${api.info.title} ${api.info.version}`), make("p", api.info.description));
for (const [path, calls] of Object.entries(api.paths)) {
  for (const [verb, call] of Object.entries(calls)) main.append(operation(api, path, verb, call));
}
main.append(make("h2", "Shapes"));
for (const [name, schema] of Object.entries(api.components.schemas)) {
  main.append(make("article", "", make("details", "", make("summary", name), make("p", schema.description ?? ""), fields(api, schema))));
}
