// The dashboard: asks the service every few seconds and shows what it says; tries an image on request.

import {
  Refused, UNKNOWN, ask, bar, byId, count, decimal, duration, el, facts, milliseconds, moment, pValue, percent, plural,
  problemLink, slugOf, svg,
} from "./parts.js";

const PAUSE = 4000; // ms between two rounds of questions
const IMAGE_SECONDS = 60; // longest wait for a prediction: a large upload takes its time
const MOST_ALERTS = 50; // shown; GET /alerts has more
const MOST_CLASSES = 12; // shown, the most frequent first
const HISTORY = 60; // rounds that the small curve remembers
const HOLDS = { short: "last 1,000", medium: "last 10,000", long: "all" };
const NO_ALERTS = "No alerts. That is no all-clear: without labels a loss of accuracy may stay unseen.";
const STATES = { ok: "good", warning: "warning", waiting: "warning", degraded: "warning", leaving: "warning" };

const words = (name) => name.replaceAll("_", " ");
const sum = (numbers) => Object.values(numbers).reduce((total, number) => total + number, 0);
const note = (...text) => el("p", { class: "note" }, text);
const badge = (kind, text) => el("span", { class: `badge ${kind}` }, text);

// A panel is drawn again only when what it shows has changed: a marked text or a scroll position stays. So does the
// focus, or nobody could use a keyboard in a panel that changes every few seconds.
const drawn = new Map();
function draw(id, data, render) {
  const seen = JSON.stringify(data);
  if (drawn.get(id) === seen) return;
  drawn.set(id, seen);
  const panel = byId(id);
  const stops = () => [...panel.querySelectorAll("a, summary, [tabindex]")];
  const focused = stops().indexOf(document.activeElement);
  panel.replaceChildren(...[render(data)].flat());
  stops()[focused]?.focus({ preventScroll: true });
}

// --- rounds of questions ----------------------------------------------------------------------

let timer;
let busy = false;

// Rounds never overlap, and none begins while nobody looks.
async function tick() {
  clearTimeout(timer);
  if (busy || document.hidden) return;
  busy = true;
  try {
    await round();
  } finally {
    busy = false;
    timer = setTimeout(tick, PAUSE);
  }
}

async function round() {
  const settled = (address) => ask(address).catch((error) => error);
  const [health, metrics, alerts] = await Promise.all([...["health", "metrics", "alerts"].map(settled), showDrift()]);
  if (health instanceof Error) {
    showSilence(health);
    return;
  }
  showState(health);
  if (!(metrics instanceof Error)) showMetrics(metrics);
  showAlerts(alerts);
  await showModel(health.model);
}

// --- state ------------------------------------------------------------------------------------

let answeredAt;

function showState({ status, reason, model, components }) {
  answeredAt = Date.now() / 1000;
  const name = model?.name ?? "Image classifier";
  byId("main").classList.remove("stale");
  byId("name").textContent = name;
  byId("release").textContent = model ? `version ${model.version} · ${model.stage}` : "no model yet";
  byId("updated").replaceChildren("updated ", moment(answeredAt));
  setBadge(STATES[status] ?? "critical", status);
  setBanner(status === "ok" ? "info" : STATES[status] ?? "critical", why(status, reason, model, components));
  document.title = `${status} · ${name}`;
}

function why(status, reason, model, { registry }) {
  if (status === "leaving") return "The service is about to end.";
  if (!reason) return "";
  if (!model) return `No model answers yet: ${reason}.`;
  return status === registry.status ? `Version ${model.version} serves on, but: ${reason}.` : reason;
}

function showSilence(error) {
  const refused = error instanceof Refused;
  const what = refused ? `The service cannot be used: ${error.message}` : "The service cannot be reached";
  setBanner("critical", what, answeredAt ? ["; what is shown is from ", moment(answeredAt)] : "", ". Asking again …");
  setBadge("critical", "no answer");
  byId("main").classList.add("stale");
  document.title = "no answer · Image classifier";
}

function setBadge(kind, text) {
  byId("state").className = `badge ${kind}`;
  byId("state").textContent = text;
}

// Screen readers read the banner aloud whenever it is written, hence only when it says something else.
function setBanner(kind, ...parts) {
  const banner = byId("banner");
  const said = el("p", {}, ...parts);
  banner.hidden = !said.textContent;
  banner.className = `banner ${kind}`;
  if (banner.textContent !== said.textContent) banner.replaceChildren(...said.childNodes);
}

// --- key figures and windows ------------------------------------------------------------------

let before; // the round before, to tell the pace
let paces = [];
let lastWindows = {};

function showMetrics(metrics) {
  const predictions = sum(Object.values(metrics.predictions).map(sum));
  if (before && (metrics.uptime_s < before.uptime || predictions < before.predictions)) [before, paces] = [null, []];
  const seconds = before ? metrics.uptime_s - before.uptime : 0;
  if (seconds > 0) paces = [...paces, (predictions - before.predictions) / seconds].slice(-HISTORY);
  before = { predictions, uptime: metrics.uptime_s };

  lastWindows = metrics.monitor.windows;
  draw("figures", { ...metrics, paces, predictions, monitor: { ...metrics.monitor, windows: null } }, keyFigures);
  draw("windows", { windows: metrics.monitor.windows, error: metrics.monitor.error }, ({ windows, error }) =>
    error ? note(error) : Object.values(windows).map(windowCard));
  showClasses();
}

function keyFigures({ predictions, paces, requests, refusals, latency_ms: latency, queue, monitor, ...rest }) {
  const asked = Object.values(requests).map(sum).reduce((total, number) => total + number, 0);
  const reasons = Object.entries(refusals).sort(([, a], [, b]) => b - a);
  const { total, decode, infer } = latency;
  const { stats } = monitor;
  const losses = { dropped: stats.dropped, lost: stats.lost, "write errors": stats.write_errors };
  const troubles = Object.entries({ ...losses, "not taken": rest.monitor_errors }).filter(([, number]) => number);
  const broken = sum(rest.non_finite);
  return [
    tile("Predictions", count(predictions), [
      paces.length ? `${decimal(paces.at(-1))} / s now` : "",
      broken ? [" ", badge("critical", `${count(broken)} not finite`)] : "",
    ], curve(paces)),
    tile("Requests", count(asked), `${duration(rest.uptime_s)} since the start`),
    tile("Refusals", count(sum(refusals)), reasons.slice(0, 3).map(([slug, number], index) =>
      [index ? ", " : "", problemLink(slug), ` ${count(number)}`])),
    tile("Latency, median", milliseconds(total.median),
      total.n ? `decode ${decimal(decode.median)}, infer ${decimal(infer.median)}` : "no prediction yet"),
    tile("Latency, p95", milliseconds(total.p95), total.n ? `of the last ${count(total.n)}` : ""),
    tile("Queue depth", count(queue.depth),
      `${plural(queue.workers, "thread")}, ${plural(queue.room, "free place")}`, null, queue.room ? "" : "critical"),
    tile("Stored", count(stats.written), troubles.length
      ? troubles.map(([name, number]) => badge("critical", `${count(number)} ${name}`))
      : `${count(stats.queued)} on their way`),
  ];
}

function tile(name, value, below, drawing = null, kind = "") {
  return el("div", { class: `tile ${kind}` }, el("h3", {}, name), el("p", { class: "value" }, value), drawing,
    el("p", { class: "note" }, below));
}

function curve(values) {
  if (values.length < 2) return null;
  const most = Math.max(...values, 1e-9);
  const points = values.map((value, index) => `${index},${1 - value / most}`).join(" ");
  const viewBox = `0 0 ${values.length - 1} 1`;
  return svg("svg", { class: "curve", viewBox, preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("polyline", { points }));
}

function windowCard(figures) {
  const { accuracy, accuracy_interval: interval, reference_n: n } = figures;
  const { degradation, degradation_lower_bound: bound } = figures;
  const ends = interval ? `95 % interval ${interval.map(percent).join(" to ")}` : "no labels yet";
  return el("article", { class: "card window", "data-window": figures.window },
    el("div", { class: "head" },
      el("h3", {}, figures.window, el("small", {}, HOLDS[figures.window])), verdict(figures)),
    el("p", { class: "value" }, percent(accuracy), el("small", {}, " accuracy")),
    interval && ruler(accuracy, interval, figures.reference_accuracy),
    el("p", { class: "note" }, ends),
    facts([
      ["predictions", count(figures.n)],
      ["labels", count(figures.n_labels)],
      ["degradation", degradation === null ? UNKNOWN : degradation <= 0 ? "none"
        : `${percent(degradation)}${bound > 0.001 ? `, at least ${percent(bound)} certain` : ""}`],
      ["estimate, without labels", figures.estimate && figures.estimate.accuracy !== null
        ? percent(figures.estimate.accuracy) : null],
      ["reference", n ? `${percent(figures.reference_accuracy)} of ${plural(n, "image")}` : UNKNOWN],
      ["mean confidence", percent(figures.mean_confidence)],
      ["not finite", figures.non_finite ? count(figures.non_finite) : null],
    ]));
}

function verdict({ level, status }) {
  if (level === null) return badge("unknown", "too few labels");
  return level === "ok" ? badge("good", "ok") : badge(level, `${level}, ${status}`);
}

// Accuracy with its interval from 0 to 100 %, and the reference as a line across.
function ruler(value, [low, high], reference) {
  const line = (kind, x1, x2, y1 = 6, y2 = 6) => svg("line", { class: kind, x1: 200 * x1, x2: 200 * x2, y1, y2 });
  return svg("svg", { class: "ruler", viewBox: "-4 0 208 12", "aria-hidden": "true" },
    line("track", 0, 1), line("interval", low, high),
    reference === null ? null : line("reference", reference, reference, 0, 12),
    svg("circle", { cx: 200 * value, cy: 6, r: 3.5 }));
}

// --- alerts, drift, classes -------------------------------------------------------------------

let lastAlerts = [];

function showAlerts(alerts) {
  lastAlerts = alerts;
  if (alerts instanceof Error) {
    draw("alerts", alerts.message, note);
    return;
  }
  const standing = byId("standing").checked;
  const wanted = standing ? alerts.filter((alert) => alert.cleared_at === null) : alerts;
  draw("alerts", [standing, wanted.length, wanted.slice(0, MOST_ALERTS)], ([, , shown]) => {
    if (!shown.length) return note(standing && alerts.length ? "No alert stands." : NO_ALERTS);
    const rest = wanted.length - shown.length;
    const list = el("ol", { class: "alerts" }, shown.map(alertItem));
    return [list, rest ? note(`and ${plural(rest, "earlier alert")}`) : ""];
  });
}

function alertItem({ level, status, metric, window, model_version: version, time, message, details, ...rest }) {
  const { cleared_at: cleared } = rest;
  return el("li", { class: cleared === null ? level : "cleared" },
    el("p", { class: "line" },
      badge(cleared === null ? level : "unknown", level), el("strong", {}, words(metric)),
      `${status}, ${window} window, version ${version}`),
    el("p", {}, message),
    details ? el("details", {}, el("summary", {}, "figures"), details.split("\n").map((line) => note(line))) : null,
    note("raised ", moment(time), cleared === null ? ", stands" : [", cleared ", moment(cleared)]));
}

const chosenWindow = () => document.querySelector("#window input:checked").value;

async function showDrift() {
  const window = chosenWindow();
  const report = await ask(`drift?window=${window}`).catch((error) => error);
  if (window !== chosenWindow()) return; // another one was chosen meanwhile, and asks for itself
  if (report instanceof Refused) draw("drift", report.message, note);
  else if (!(report instanceof Error)) draw("drift", report, driftTable);
}

function driftTable({ results, alpha, model_version: version }) {
  if (version === null) return note("No predictions have been logged yet.");
  if (!results.length) return note("There is nothing to compare with: the model has no baseline.");
  const told = results.filter((result) => result.drifted !== null);
  const found = told.filter((result) => result.drifted).length;
  const summary = told.length ? `${found} of ${plural(told.length, "test")} found drift` : "Too little data to tell";
  const families = { model: "what the model answers", input: "what the images look like" };
  const head = ["test", "verdict", "effect", "matters from", "p", "what changed"];
  return [
    note(`${summary}. Drift is an effect that matters with p, corrected for the number of tests, below ${alpha}.`),
    el("div", { class: "scroll-x", tabindex: 0, role: "region", "aria-label": "Drift tests" }, el("table", {},
      el("thead", {}, el("tr", {}, head.map((name) => el("th", { scope: "col" }, name)))),
      Object.entries(families).map(([family, title]) => {
        const rows = results.filter((result) => result.family === family).map(driftRow);
        const heading = el("tr", {}, el("th", { scope: "colgroup", colspan: head.length, class: "group" }, title));
        return rows.length ? el("tbody", {}, heading, rows) : null;
      }))),
  ];
}

function driftRow({ metric, status, effect, minimum_effect: least, corrected_p_value: p, detail }) {
  const kinds = { drift: "critical", no_drift: "good", insufficient_data: "unknown" };
  const texts = { drift: "drift", no_drift: "no drift", insufficient_data: "too little data" };
  return el("tr", {}, el("th", { scope: "row" }, words(metric)), el("td", {}, badge(kinds[status], texts[status])),
    el("td", { class: "number" }, decimal(effect)), el("td", { class: "number" }, decimal(least)),
    el("td", { class: "number" }, pValue(p)), el("td", {}, detail.replaceAll("->", "→") || UNKNOWN));
}

function showClasses() {
  const shares = Object.entries(lastWindows[chosenWindow()]?.class_shares ?? {}).sort(([, a], [, b]) => b - a);
  draw("classes", [chosenWindow(), shares], () => {
    if (!shares.length) return note("No predictions in this window.");
    const rest = shares.slice(MOST_CLASSES);
    const others = rest.reduce((total, [, share]) => total + share, 0);
    return [note(`Of the ${chosenWindow()} window.`), bars(shares.slice(0, MOST_CLASSES)),
      rest.length ? note(`and ${plural(rest.length, "class", "classes")} more with ${percent(others)} together`) : ""];
  });
}

function bars(entries) {
  return el("ol", { class: "bars" }, entries.map(([name, share]) =>
    el("li", {}, el("span", { class: "name" }, name), el("span", { class: "number" }, percent(share)), bar(share))));
}

// --- the model --------------------------------------------------------------------------------

let described; // the model that the card is about: null for none
let classes = [];

async function showModel(model) {
  const wanted = model && `${model.version} ${model.loaded_at}`;
  if (wanted === described) return;
  const info = model && await ask("model-info").catch(() => undefined);
  if (info === undefined) return; // the next round asks again
  described = wanted;
  classes = info?.classes ?? [];
  draw("model", info, () => (info ? modelCard(info) : note("No model answers yet.")));
}

function modelCard(info) {
  const { accuracy, images } = info.baseline;
  const measured = Object.entries(info.metrics).map(([name, { value, images: n }]) =>
    [words(name), `${decimal(value)}${n ? ` (${plural(n, "image")})` : ""}`]);
  const code = (text) => el("code", {}, text);
  return [
    facts([
      ["name", info.name],
      ["version", `${info.version}, ${info.stage}`],
      ["loaded", moment(info.loaded_at)],
      ["engine", info.engine],
      ["network", info.network],
      ["input", `${info.image_size} × ${info.image_size} px, ${info.resize_rule}`],
      ["decoder", info.decoder],
      ["temperature", decimal(info.temperature)],
      ["baseline", images ? `${percent(accuracy)} of ${plural(images, "image")}` : UNKNOWN],
      ...measured,
      ["run", code(info.run_id)],
      ["digest", code(info.digest)],
      ["code", code(info.code_version)],
      ["made with", Object.entries(info.versions).map(([name, version]) => `${name} ${version}`).join(", ")],
    ]),
    el("details", {}, el("summary", {}, plural(info.classes.length, "class", "classes")),
      el("ul", { class: "chips" }, info.classes.map((name) => el("li", {}, name)))),
  ];
}

// --- try it -----------------------------------------------------------------------------------

let key = ""; // of the service, in the memory of this page and nowhere else
let afterKey; // what waits for it
let attempt = 0; // images tried: an answer to an earlier one is not shown any more
let prediction;

function post(address, type, body) {
  const headers = { "Content-Type": type };
  // A header holds bytes, which fetch takes as Latin-1; the service compares UTF-8.
  if (key) headers["X-API-Key"] = String.fromCharCode(...new TextEncoder().encode(key));
  return ask(address, { method: "POST", headers, body, seconds: IMAGE_SECONDS });
}

// Do what may need a key: when one is asked for, it is done once more with the key that is typed in.
async function withKey(place, action) {
  const mine = attempt;
  try {
    await action(() => mine === attempt);
    byId("key-form").hidden = true;
  } catch (error) {
    if (mine !== attempt) return;
    place.replaceChildren(trouble(error));
    if (![401, 403].includes(error.status)) return;
    afterKey = () => withKey(place, action);
    byId("key-form").hidden = false;
    byId("key").focus();
  }
}

function trouble(error) {
  const slug = slugOf(error.type);
  const silence = "no answer: the service is away, or the file is too large for it";
  const text = error instanceof Refused ? error.message : silence;
  return el("p", { class: "trouble" }, text, slug && [" (", problemLink(slug), ")"]);
}

function tryImage(file) {
  attempt += 1;
  showPreview(file);
  byId("truth-form").hidden = true;
  byId("told").replaceChildren();
  byId("answer").replaceChildren(note("Asking …"));
  withKey(byId("answer"), async (current) => {
    const answer = await post("predict", "application/octet-stream", file); // the content decides, not the name
    if (current()) showPrediction(answer);
  });
}

function showPreview(file) {
  const preview = byId("preview");
  URL.revokeObjectURL(preview.src);
  preview.onload = () => (preview.hidden = false);
  preview.onerror = () => (preview.hidden = true); // a format that the service reads and the browser does not
  preview.src = URL.createObjectURL(file);
}

function showPrediction(answer) {
  prediction = answer;
  const { timings_ms: times, model } = answer;
  byId("answer").replaceChildren(
    el("p", { class: "value" }, answer.predicted_class, el("small", {}, ` ${percent(answer.confidence)}`)),
    bars(answer.top_k.map(({ label, probability }) => [label, probability])),
    note(`Version ${model.version} in ${milliseconds(times.total)}: decode ${decimal(times.decode)}, `,
      `queue ${decimal(times.queue)}, infer ${decimal(times.infer)}.`));
  const names = classes.length ? classes : answer.top_k.map(({ label }) => label);
  const none = el("option", { value: "" }, "choose a class");
  byId("truth").replaceChildren(none, ...names.map((name) => el("option", {}, name)));
  byId("truth-form").hidden = false;
}

function tellTruth() {
  const { prediction_id, predicted_class } = prediction;
  const label = byId("truth").selectedOptions[0].text;
  withKey(byId("told"), async (current) => {
    await post("feedback", "application/json", JSON.stringify({ prediction_id, label, source: "dashboard" }));
    const verdict = label === predicted_class ? "right" : "wrong";
    if (current()) byId("told").textContent = `Recorded: ${label}. The model was ${verdict}.`;
  });
}

// --- what the reader does ---------------------------------------------------------------------

function on(id, event, action) {
  byId(id).addEventListener(event, (happened) => {
    if (event === "submit") happened.preventDefault();
    action(happened);
  });
}

on("window", "change", () => {
  showDrift();
  showClasses();
});
on("standing", "change", () => showAlerts(lastAlerts));
on("file", "change", ({ target }) => {
  if (target.files.length) tryImage(target.files[0]);
  target.value = ""; // so that the same file can be chosen again
});
on("truth-form", "submit", tellTruth);
on("key-form", "submit", () => {
  key = byId("key").value.trim();
  byId("key").value = "";
  afterKey();
});

// Anywhere on the page: an image that misses the field must not replace the page.
for (const event of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(event, (happened) => {
    happened.preventDefault();
    byId("drop").classList.toggle("over", event === "dragover");
    if (event === "drop" && happened.dataTransfer.files.length) tryImage(happened.dataTransfer.files[0]);
  });
}

document.addEventListener("visibilitychange", tick);
tick();
