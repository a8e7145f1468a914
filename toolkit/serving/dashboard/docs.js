// The page of addresses, made from /openapi.json: what can be asked, how, and what may come back.

import { UNKNOWN, ask, byId, el, problemLink } from "./parts.js";

// What to do about each kind of problem; the service names the kinds.
const ADVICE = {
  "not-http": "Send HTTP/1.1 with well-formed headers of a reasonable size.",
  "malformed-body": "Send valid JSON, or a multipart form whose parts are complete.",
  "undecodable-picture": "The file is empty, cut off or no picture at all; try to open it with a viewer.",
  "key-missing": "Send the key as the header X-API-Key, or as Authorization: Bearer.",
  "key-wrong": "Predictions and administration have keys of their own; without one, administration answers nobody.",
  "cross-origin": "Ask from a page of the service's own origin, or start the service with --allow-origin.",
  "not-found": "Compare the address with the list on this page.",
  "unknown-prediction": "Use the prediction_id of an answer; one that the monitor dropped or lost is not known either.",
  "method-not-allowed": "Compare the method with the list on this page.",
  "too-slow": "Send the request in one go; slow uplinks need a service started with larger --body-seconds.",
  "body-too-large": "Send a smaller file or fewer pictures at once, or start the service with a larger --max-body-mb.",
  "picture-too-large": "Scale the picture down, or start the service with a larger --max-pixels.",
  "unsupported-media-type": "Set Content-Type to one of the types that this page lists for the address.",
  "unsupported-encoding": "Send the body as it is, or compressed with gzip or deflate.",
  "unsupported-picture": "Convert the picture to JPEG, PNG, WebP, BMP, GIF or TIFF.",
  "invalid-parameter": "The members detail and errors name each parameter and the rule that it breaks.",
  "unknown-label": "Tell a class of the model that made the prediction; GET /model-info lists them.",
  "internal-error": "The log of the service tells more under the request_id of the answer.",
  "non-finite-output": "The model gave NaN or infinity. Go back to the version before: model_registry.py rollback.",
  "not-ready": "No version is in the stage that is served, or it is being loaded; GET /health tells the reason.",
  "full": "All threads are busy and the queue is full. Ask again after Retry-After seconds.",
  "too-many-connections": "Close connections that are no longer used, or start the service with larger --most-connections.",
  "deadline": "The service is overloaded. Ask again later, or start it with larger --answer-seconds.",
  "monitor-unavailable": "The store is locked, full or away. Predictions are answered all the same; ask again later.",
};

const base = new URL(".", document.baseURI).href.replace(/\/$/, ""); // also right where the service is mounted deeper

function build(api, model) {
  document.title = `Addresses · ${api.info.title}`;
  byId("title").textContent = `${api.info.title}: all addresses`;
  byId("description").textContent = api.info.description;
  const operations = Object.entries(api.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) =>
      ({ path, address: filled(path, model), method, id: anchor(method, path), ...operation })));
  const groups = [...new Set(operations.map(tag))];
  const of = (group) => operations.filter((operation) => tag(operation) === group);
  byId("nav").replaceChildren(
    ...groups.flatMap((group) => [el("h3", {}, group), el("ul", {}, of(group).map(entry))]),
    el("h3", {}, el("a", { href: "#problems" }, "problems")));
  byId("content").replaceChildren(
    ...groups.map((group) =>
      el("section", {}, el("h2", {}, group), of(group).map((operation) => article(operation, api)))),
    problems(api, operations));
}

const tag = (operation) => operation.tags?.[0] ?? "other";
const anchor = (method, path) => `${method}${path.replaceAll(/[^\w]+/g, "-")}`;
const method = (name) => el("span", { class: `badge method ${name === "get" ? "good" : "info"}` }, name.toUpperCase());
const entry = ({ id, method: name, path }) => el("li", {}, el("a", { href: `#${id}` }, method(name),
  el("span", {}, path.split(/(?=\/)/).map((part) => [el("wbr"), part])))); // a long path breaks before a slash

// A path with the served model's name and version, without what a shell minds; the braces stay while there is none.
const filled = (path, model) => (model ? path.replaceAll(/\{(name|version)\}/g, (_, key) => coded(model[key])) : path);
const coded = (text) =>
  encodeURIComponent(text).replaceAll(/[!'()*~]/g, (one) => `%${one.charCodeAt().toString(16).toUpperCase()}`);

// Text in which `this` is code.
const prose = (text) => (text ?? "").split("`").map((part, index) => (index % 2 ? el("code", {}, part) : part));

function article(operation, api) {
  const { id, path, method: name, description, parameters = [], requestBody, responses, security } = operation;
  const bodies = Object.entries(requestBody?.content ?? {});
  return el("article", { id, class: "card" },
    el("h3", {}, method(name), el("code", {}, path), security && el("span", { class: "badge warning" }, "needs a key")),
    el("p", {}, prose(description)),
    parameters.length > 0 && [el("h4", {}, "Parameters"),
      table(["name", "in", "type", "meaning"], parameters.map(parameterRow))],
    bodies.length > 0 && [el("h4", {}, "Request body"), table(["type", "content"], bodies.map(([media, { schema }]) =>
      [el("code", {}, media), (schema.oneOf ?? schema.anyOf ?? [schema]).map((kind, index) =>
        [index ? " or " : "", el("code", {}, show(sample(kind, api)))])]))],
    el("h4", {}, "Answers"),
    table(["status", "meaning"], Object.entries(responses).map(([status, response]) =>
      [el("code", {}, status), status < "300" ? success(response, api) : refusal(status, response, api)])),
    el("h4", {}, "Example"),
    examples(operation, api).map((example) => el("pre", {}, example)));
}

function table(head, rows) {
  return el("div", { class: "scroll-x", tabindex: 0, role: "region", "aria-label": head.join(", ") }, el("table", {},
    el("thead", {}, el("tr", {}, head.map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, rows.map((cells) => el("tr", {}, cells.map((cell) => el("td", {}, cell)))))));
}

function parameterRow({ name, in: place, required, schema, description }) {
  const kinds = (schema.anyOf ?? [schema]).filter((kind) => kind.type !== "null");
  const types = kinds.map((kind) => kind.enum?.join(" | ") ?? kind.format ?? kind.type);
  const given = schema.default === undefined ? "" : ` (${schema.default} when not given)`;
  const where = `${place}${required ? ", required" : ""}`;
  return [el("code", {}, name), where, types.join(" or "), [prose(description ?? UNKNOWN), given]];
}

function success({ content = {} }, api) {
  return Object.entries(content).map(([media, { schema }]) => {
    const value = sample(schema, api);
    return el("div", {}, media, value === "…" ? "" : [" ", el("code", {}, show(value))]);
  });
}

// The description of a refusal joins the titles of its problems, which lead to their explanations below.
function refusal(status, { description }, api) {
  return description.split("; ").map((title, index) => {
    const problem = api["x-problems"].find((one) => one.title === title && String(one.status) === status);
    return [index ? "; " : "", problem ? problemLink(problem.slug, title) : title];
  });
}

// --- samples ----------------------------------------------------------------------------------

// A value of the shape that a schema describes: names where values are free.
function sample(schema = {}, api, name = "…") {
  if (schema.$ref) return sample(api.components.schemas[schema.$ref.split("/").at(-1)], api, name);
  const one = (schema.anyOf ?? schema.oneOf)?.find((kind) => kind.type !== "null");
  if (one) return sample(one, api, name);
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.const) return schema.const;
  if (schema.type === "array") return [sample(schema.items, api)];
  if (schema.properties) {
    return Object.fromEntries(Object.entries(schema.properties).map(([key, value]) => [key, sample(value, api, key)]));
  }
  const simple = { integer: 0, number: 0.5, boolean: true, object: {}, binary: "(file)", byte: "(base64)" };
  return simple[schema.format] ?? simple[schema.type] ?? name.toUpperCase();
}

function show(value) {
  return typeof value === "string" ? value : JSON.stringify(value).replaceAll(/([:,])(?=["[{\d])/g, "$1 ");
}

function examples({ address, method: name, requestBody, responses, security }, api) {
  const words = ["curl", ...(security ? ["-H 'X-API-Key: KEY'"] : [])];
  const url = base + address;
  const line = (...more) => [...words, ...more, url].join(" ");
  const bodies = Object.entries(requestBody?.content ?? {});
  if (bodies.length) return bodies.map(([media, content]) => withBody(media, content, line, api));
  if (name === "post") return [line("-X POST")];
  const [, ...others] = Object.keys(responses["200"]?.content ?? {}); // the first comes without asking for it
  return [line(), ...others.map((media) => line(`-H 'Accept: ${media}'`))];
}

function withBody(media, { schema, example }, line, api) {
  if (media === "multipart/form-data") {
    return line(...Object.entries(schema.properties).flatMap(([field, { type }]) =>
      (type === "array" ? ["one.jpg", "two.jpg"] : ["picture.jpg"]).map((file) => `-F ${field}=@${file}`)));
  }
  const type = `-H 'Content-Type: ${media.replace("*", "jpeg")}'`;
  if (media !== "application/json") return line(type, "--data-binary @picture.jpg");
  const body = show(example ?? sample(schema, api));
  if (!body.includes("(base64)")) return line(type, `-d '${body}'`);
  // Through a pipe, since a whole picture is too long for an argument.
  return `printf '${body.replace("(base64)", "%s")}' "$(base64 -w0 picture.jpg)" | ${line(type, "-d @-")}`;
}

// --- problems ---------------------------------------------------------------------------------

function problems(api, operations) {
  const document = sample({ $ref: "#/components/schemas/ProblemDocument" }, api);
  return el("section", { id: "problems" }, el("h2", {}, "Problems"),
    el("p", {}, "Every error is a document of type ", el("code", {}, "application/problem+json"),
      " (RFC 9457). Its ", el("code", {}, "type"), " leads to one of the entries below, its ", el("code", {}, "detail"),
      " is about the very case, and its ", el("code", {}, "request_id"), " is in the log of the service."),
    el("pre", {}, show(document)),
    api["x-problems"].map(({ slug, status, title }) => {
      const titles = (operation) => operation.responses[status]?.description.split("; ") ?? [];
      const from = operations.filter((operation) => titles(operation).includes(title));
      return el("article", { id: `problem-${slug}`, class: "card" },
        el("h3", {}, el("span", { class: "badge critical" }, status), title, el("small", {}, slug)),
        ADVICE[slug] ? el("p", {}, ADVICE[slug]) : null,
        from.length ? el("p", { class: "note" }, "From ", from.map(({ id, path }, index) =>
          [index ? ", " : "", el("a", { href: `#${id}` }, el("code", {}, path))]), ".") : null);
    }));
}

try {
  const [api, health] = await Promise.all(["openapi.json", "health"].map((address) => ask(address)));
  build(api, health.model);
  // The browser looked for the entry before it was there.
  if (location.hash) location.replace(location.hash);
} catch (error) {
  byId("description").textContent = `The list cannot be shown: ${error.message}`;
}
