// The dashboard: shows the state of the service, refreshed every few seconds, and predicts a chosen image.

import {
  HttpError, UNKNOWN, bar, byId, count, decimal, duration, el, facts, fetchJson, milliseconds, moment, pValue, percent,
  plural, problemLink, slugOf, svg,
} from "./components.js";

const REFRESH_MS = 4000; // pause between two refreshes
const PREDICT_TIMEOUT_S = 60; // a large upload takes its time
const MAX_ALERTS = 50; // shown; GET /alerts has more
const MAX_CLASSES = 12; // shown, the most frequent first
const HISTORY = 60; // refreshes in the curve of the request rate
const WINDOW_SIZES = { short: "last 1,000", medium: "last 10,000", long: "all" };
const NO_ALERTS = "No alerts. Without labels a loss of accuracy may stay undetected.";
const STATES = { ok: "good", warning: "warning", waiting: "warning", degraded: "warning", draining: "warning" };

const words = (name) => name.replaceAll("_", " ");
const sum = (numbers) => Object.values(numbers).reduce((total, number) => total + number, 0);
const note = (...text) => el("p", { class: "note" }, text);
const badge = (kind, text) => el("span", { class: `badge ${kind}` }, text);

// Renders a panel when its data has changed, so that a selection and a scroll position stay; the focus is restored.
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

// --- refresh ----------------------------------------------------------------------------------

let timer;
let busy = false;

// Refreshes never overlap, and none begins while the page is hidden.
async function tick() {
  clearTimeout(timer);
  if (busy || document.hidden) return;
  busy = true;
  try {
    await refresh();
  } finally {
    busy = false;
    timer = setTimeout(tick, REFRESH_MS);
  }
}

async function refresh() {
  const settled = (address) => fetchJson(address).catch((error) => error);
  const [health, metrics, alerts] = await Promise.all([...["health", "metrics", "alerts"].map(settled), showDrift()]);
  if (health instanceof Error) {
    showUnreachable(health);
    return;
  }
  showState(health);
  if (!(metrics instanceof Error)) showMetrics(metrics);
  showAlerts(alerts);
  await showModel(health.model);
}

// --- state ------------------------------------------------------------------------------------

let updatedAt;

function showState({ status, reason, model, components }) {
  updatedAt = Date.now() / 1000;
  const name = model?.name ?? "Image classifier";
  byId("main").classList.remove("stale");
  byId("name").textContent = name;
  byId("release").textContent = model ? `version ${model.version} · ${model.stage}` : "no model yet";
  byId("updated").replaceChildren("updated ", moment(updatedAt));
  setBadge(STATES[status] ?? "critical", status);
  setBanner(status === "ok" ? "info" : STATES[status] ?? "critical", explanation(status, reason, model, components));
  document.title = `${status} · ${name}`;
}

function explanation(status, reason, model, { registry }) {
  if (status === "draining") return "The service is shutting down.";
  if (!reason) return "";
  if (!model) return `No model is loaded yet: ${reason}.`;
  return status === registry.status ? `Version ${model.version} is still served, but: ${reason}.` : reason;
}

function showUnreachable(error) {
  const isAnswer = error instanceof HttpError;
  const what = isAnswer ? `The service cannot be used: ${error.message}` : "The service cannot be reached";
  setBanner("critical", what, updatedAt ? ["; the data shown is from ", moment(updatedAt)] : "", ". Retrying …");
  setBadge("critical", "no answer");
  byId("main").classList.add("stale");
  document.title = "no answer · Image classifier";
}

function setBadge(kind, text) {
  byId("state").className = `badge ${kind}`;
  byId("state").textContent = text;
}

// Written only when the text changes: screen readers read it aloud each time.
function setBanner(kind, ...parts) {
  const banner = byId("banner");
  const content = el("p", {}, ...parts);
  banner.hidden = !content.textContent;
  banner.className = `banner ${kind}`;
  if (banner.textContent !== content.textContent) banner.replaceChildren(...content.childNodes);
}

// --- metrics and windows ----------------------------------------------------------------------

let previous; // of the refresh before, for the request rate
let rates = [];
let lastWindows = {};

function showMetrics(metrics) {
  const predictions = sum(Object.values(metrics.predictions).map(sum));
  if (previous && (metrics.uptime_s < previous.uptime || predictions < previous.predictions)) {
    [previous, rates] = [null, []];
  }
  const seconds = previous ? metrics.uptime_s - previous.uptime : 0;
  if (seconds > 0) rates = [...rates, (predictions - previous.predictions) / seconds].slice(-HISTORY);
  previous = { predictions, uptime: metrics.uptime_s };

  lastWindows = metrics.monitor.windows;
  draw("metrics", { ...metrics, rates, predictions, monitor: { ...metrics.monitor, windows: null } }, keyMetrics);
  draw("windows", { windows: metrics.monitor.windows, error: metrics.monitor.error }, ({ windows, error }) =>
    error ? note(error) : Object.values(windows).map(windowCard));
  showClasses();
}

function keyMetrics({ predictions, rates, requests, errors, latency_ms: latency, queue, monitor, ...rest }) {
  const requestCount = Object.values(requests).map(sum).reduce((total, number) => total + number, 0);
  const reasons = Object.entries(errors).sort(([, a], [, b]) => b - a);
  const { total, decode, infer } = latency;
  const { stats } = monitor;
  const losses = { dropped: stats.dropped, lost: stats.lost, "write errors": stats.write_errors };
  const problems = Object.entries({ ...losses, "not logged": rest.monitor_errors }).filter(([, number]) => number);
  const nonFinite = sum(rest.non_finite);
  return [
    tile("Predictions", count(predictions), [
      rates.length ? `${decimal(rates.at(-1))} / s now` : "",
      nonFinite ? [" ", badge("critical", `${count(nonFinite)} not finite`)] : "",
    ], curve(rates)),
    tile("Requests", count(requestCount), `in ${duration(rest.uptime_s)}`),
    tile("Errors", count(sum(errors)), reasons.slice(0, 3).map(([slug, number], index) =>
      [index ? ", " : "", problemLink(slug), ` ${count(number)}`])),
    tile("Latency, median", milliseconds(total.median),
      total.n ? `decode ${decimal(decode.median)}, infer ${decimal(infer.median)}` : "no prediction yet"),
    tile("Latency, p95", milliseconds(total.p95), total.n ? `of the last ${count(total.n)}` : ""),
    tile("Queue depth", count(queue.depth),
      [plural(queue.threads, "thread"), ", ", plural(queue.free_slots, "free slot")],
      null, queue.free_slots ? "" : "critical"),
    tile("Stored", count(stats.written), problems.length
      ? problems.map(([name, number]) => badge("critical", `${count(number)} ${name}`))
      : `${count(stats.queued)} queued`),
  ];
}

function tile(name, value, below, drawing = null, kind = "") {
  return el("div", { class: `tile ${kind}` }, el("h3", {}, name), el("p", { class: "value" }, value), drawing,
    el("p", { class: "note" }, below));
}

function curve(values) {
  if (values.length < 2) return null;
  const max = Math.max(...values, 1e-9);
  const points = values.map((value, index) => `${index},${1 - value / max}`).join(" ");
  const viewBox = `0 0 ${values.length - 1} 1`;
  return svg("svg", { class: "curve", viewBox, preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("polyline", { points }));
}

function windowCard(metrics) {
  const { accuracy, accuracy_interval: interval, reference_n: n } = metrics;
  const { degradation, degradation_lower_bound: bound } = metrics;
  const ends = interval ? `95 % interval ${interval.map(percent).join(" to ")}` : "no labels yet";
  return el("article", { class: "card window", "data-window": metrics.window },
    el("div", { class: "head" },
      el("h3", {}, metrics.window, el("small", {}, WINDOW_SIZES[metrics.window])), qualityBadge(metrics)),
    el("p", { class: "value" }, percent(accuracy), el("small", {}, " accuracy")),
    interval && ruler(accuracy, interval, metrics.reference_accuracy),
    el("p", { class: "note" }, ends),
    facts([
      ["predictions", count(metrics.n)],
      ["labels", count(metrics.n_labels)],
      ["degradation", degradation === null ? UNKNOWN : degradation <= 0 ? "none"
        : `${percent(degradation)}${bound > 0.001 ? `, at least ${percent(bound)}` : ""}`],
      ["estimate, without labels", metrics.estimate && metrics.estimate.accuracy !== null
        ? percent(metrics.estimate.accuracy) : null],
      ["reference", n ? `${percent(metrics.reference_accuracy)} of ${plural(n, "image")}` : UNKNOWN],
      ["mean confidence", percent(metrics.mean_confidence)],
      ["not finite", metrics.non_finite ? count(metrics.non_finite) : null],
    ]));
}

function qualityBadge({ level, status }) {
  if (level === null) return badge("unknown", "too few labels");
  return level === "ok" ? badge("good", "ok") : badge(level, `${level}, ${status}`);
}

// Accuracy with its interval from 0 to 100 %, and the reference as a line.
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
  const onlyActive = byId("active").checked;
  const matching = onlyActive ? alerts.filter((alert) => alert.cleared_at === null) : alerts;
  draw("alerts", [onlyActive, matching.length, matching.slice(0, MAX_ALERTS)], ([, , shown]) => {
    if (!shown.length) return note(onlyActive && alerts.length ? "No active alerts." : NO_ALERTS);
    const rest = matching.length - shown.length;
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
    details ? el("details", {}, el("summary", {}, "details"), details.split("\n").map((line) => note(line))) : null,
    note("raised ", moment(time), cleared === null ? ", active" : [", cleared ", moment(cleared)]));
}

const chosenWindow = () => document.querySelector("#window input:checked").value;

async function showDrift() {
  const window = chosenWindow();
  const report = await fetchJson(`drift?window=${window}`).catch((error) => error);
  if (window !== chosenWindow()) return; // another window was chosen meanwhile
  if (report instanceof HttpError) draw("drift", report.message, note);
  else if (!(report instanceof Error)) draw("drift", report, driftTable);
}

function driftTable({ results, alpha, model_version: version }) {
  if (version === null) return note("No predictions have been logged yet.");
  if (!results.length) return note("The model has no baseline to compare with.");
  const decided = results.filter((result) => result.drifted !== null);
  const drifted = decided.filter((result) => result.drifted).length;
  const summary = decided.length ? `Drift in ${drifted} of ${plural(decided.length, "test")}` : "Insufficient data";
  const families = { model: "predictions", input: "images" };
  const head = ["test", "result", "effect", "minimum", "p", "change"];
  return [
    note(`${summary}. Drift is an effect of at least the minimum with a corrected p-value below ${alpha}.`),
    el("div", { class: "scroll-x", tabindex: 0, role: "region", "aria-label": "Drift tests" }, el("table", {},
      el("thead", {}, el("tr", {}, head.map((name) => el("th", { scope: "col" }, name)))),
      Object.entries(families).map(([family, title]) => {
        const rows = results.filter((result) => result.family === family).map(driftRow);
        const heading = el("tr", {}, el("th", { scope: "colgroup", colspan: head.length, class: "group" }, title));
        return rows.length ? el("tbody", {}, heading, rows) : null;
      }))),
  ];
}

function driftRow({ metric, status, effect, minimum_effect: minimum, corrected_p_value: p, detail }) {
  const kinds = { drift: "critical", no_drift: "good", insufficient_data: "unknown" };
  const texts = { drift: "drift", no_drift: "no drift", insufficient_data: "insufficient data" };
  return el("tr", {}, el("th", { scope: "row" }, words(metric)), el("td", {}, badge(kinds[status], texts[status])),
    el("td", { class: "number" }, decimal(effect)), el("td", { class: "number" }, decimal(minimum)),
    el("td", { class: "number" }, pValue(p)), el("td", {}, detail.replaceAll("->", "→") || UNKNOWN));
}

function showClasses() {
  const shares = Object.entries(lastWindows[chosenWindow()]?.class_shares ?? {}).sort(([, a], [, b]) => b - a);
  draw("classes", [chosenWindow(), shares], () => {
    if (!shares.length) return note("No predictions in this window.");
    const rest = shares.slice(MAX_CLASSES);
    const others = rest.reduce((total, [, share]) => total + share, 0);
    return [note(`Of the ${chosenWindow()} window.`), bars(shares.slice(0, MAX_CLASSES)),
      rest.length ? note(`and ${plural(rest.length, "class", "classes")} more with ${percent(others)} together`) : ""];
  });
}

function bars(entries) {
  return el("ol", { class: "bars" }, entries.map(([name, share]) =>
    el("li", {}, el("span", { class: "name" }, name), el("span", { class: "number" }, percent(share)), bar(share))));
}

// --- the model --------------------------------------------------------------------------------

let shownModel; // of the card: null for none
let classes = [];

async function showModel(model) {
  const current = model && `${model.version} ${model.loaded_at}`;
  if (current === shownModel) return;
  const info = model && await fetchJson("model-info").catch(() => undefined);
  if (info === undefined) return; // the next refresh tries again
  shownModel = current;
  classes = info?.classes ?? [];
  draw("model", info, () => (info ? modelCard(info) : note("No model is loaded yet.")));
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
      ["libraries", Object.entries(info.versions).map(([name, version]) => `${name} ${version}`).join(", ")],
    ]),
    el("details", {}, el("summary", {}, plural(info.classes.length, "class", "classes")),
      el("ul", { class: "chips" }, info.classes.map((name) => el("li", {}, name)))),
  ];
}

// --- try it -----------------------------------------------------------------------------------

let key = ""; // kept in the memory of this page only
let retry; // the action that needs the key
let attempt = 0; // number of the chosen image: the prediction of an earlier one is dropped
let prediction;

function post(address, type, body) {
  const headers = { "Content-Type": type };
  // A header holds bytes, which fetch takes as Latin-1; the service compares UTF-8.
  if (key) headers["X-API-Key"] = String.fromCharCode(...new TextEncoder().encode(key));
  return fetchJson(address, { method: "POST", headers, body, seconds: PREDICT_TIMEOUT_S });
}

// Runs an action that may need a key; if it does, it is repeated with the key that is typed in.
async function withKey(output, action) {
  const mine = attempt;
  try {
    await action(() => mine === attempt);
    byId("key-form").hidden = true;
  } catch (error) {
    if (mine !== attempt) return;
    output.replaceChildren(errorText(error));
    if (![401, 403].includes(error.status)) return;
    retry = () => withKey(output, action);
    byId("key-form").hidden = false;
    byId("key").focus();
  }
}

function errorText(error) {
  const slug = slugOf(error.type);
  const unreachable = "no answer: the service is unreachable, or the file is too large for it";
  const text = error instanceof HttpError ? error.message : unreachable;
  return el("p", { class: "error" }, text, slug && [" (", problemLink(slug), ")"]);
}

function predictImage(file) {
  attempt += 1;
  showPreview(file);
  byId("label-form").hidden = true;
  byId("feedback").replaceChildren();
  byId("answer").replaceChildren(note("Predicting …"));
  withKey(byId("answer"), async (current) => {
    const answer = await post("predict", "application/octet-stream", file); // the content decides the format
    if (current()) showPrediction(answer);
  });
}

function showPreview(file) {
  const preview = byId("preview");
  URL.revokeObjectURL(preview.src);
  preview.onload = () => (preview.hidden = false);
  preview.onerror = () => (preview.hidden = true); // a format that only the service can read
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
  byId("label").replaceChildren(none, ...names.map((name) => el("option", {}, name)));
  byId("label-form").hidden = false;
}

function sendLabel() {
  const { prediction_id, predicted_class } = prediction;
  const label = byId("label").selectedOptions[0].text;
  withKey(byId("feedback"), async (current) => {
    await post("feedback", "application/json", JSON.stringify({ prediction_id, label, source: "dashboard" }));
    const correctness = label === predicted_class ? "correct" : "wrong";
    if (current()) byId("feedback").textContent = `Recorded: ${label}. The prediction was ${correctness}.`;
  });
}

// --- events -----------------------------------------------------------------------------------

function on(id, event, action) {
  byId(id).addEventListener(event, (domEvent) => {
    if (event === "submit") domEvent.preventDefault();
    action(domEvent);
  });
}

on("window", "change", () => {
  showDrift();
  showClasses();
});
on("active", "change", () => showAlerts(lastAlerts));
on("file", "change", ({ target }) => {
  if (target.files.length) predictImage(target.files[0]);
  target.value = ""; // the same file may be chosen again
});
on("label-form", "submit", sendLabel);
on("key-form", "submit", () => {
  key = byId("key").value.trim();
  byId("key").value = "";
  retry();
});

// Anywhere on the page: an image dropped beside the field must not replace the page.
for (const event of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(event, (domEvent) => {
    domEvent.preventDefault();
    byId("drop").classList.toggle("over", event === "dragover");
    if (event === "drop" && domEvent.dataTransfer.files.length) predictImage(domEvent.dataTransfer.files[0]);
  });
}

document.addEventListener("visibilitychange", tick);
tick();
