// Elements, formatting of numbers and times, and requests to the service, for the dashboard.

// Creates an element. Children that are strings become text, never markup; null and false are left out.
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

// The same for SVG. Sizes are attributes: the Content-Security-Policy allows no inline style.
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (isGiven(value)) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter(isGiven));
  return element;
}

const isGiven = (value) => value !== null && value !== undefined && value !== false;

export const byId = (id) => document.getElementById(id);

// A description list of pairs of term and value; a pair whose value is null is left out.
export function facts(pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined);
  return el("dl", { class: "facts" }, shown.map(([term, value]) =>
    el("div", {}, el("dt", {}, term), el("dd", {}, value))));
}

// A share from 0 to 1 as a bar, hidden from screen readers: the number is always next to it.
export function bar(share, kind = "") {
  return svg("svg", { class: `bar ${kind}`, viewBox: "0 0 100 1", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { width: 100 * Math.min(1, Math.max(0, share)), height: 1 }));
}

export const UNKNOWN = "–";

const whole = new Intl.NumberFormat("en");
export const count = (value) => whole.format(value);
export const plural = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;

// 0.8064 is "80.6 %". Only 1 is "100 %", and only 0 is "0 %".
export function percent(value) {
  if (value === null || value === undefined) return UNKNOWN;
  if (value < 1 && value >= 0.9995) return "> 99.9 %";
  if (value > 0 && value < 0.0005) return "< 0.1 %";
  return `${value === 0 || value === 1 ? 100 * value : (100 * value).toFixed(1)} %`;
}

export function decimal(value) {
  if (value === null || value === undefined) return UNKNOWN;
  return String(Number(value.toPrecision(3)));
}

export function pValue(value) {
  if (value === null || value === undefined) return UNKNOWN;
  return value < 1e-4 ? "< 0.0001" : value.toFixed(4);
}

export const milliseconds = (value) => (value === null || value === undefined ? UNKNOWN : `${decimal(value)} ms`);

export function duration(seconds) {
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= 2 * size) return `${Math.floor(seconds / size)} ${unit}`;
  }
  return `${Math.floor(seconds)} s`;
}

const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const calendar = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

// Seconds since 1970 as local time; with the day unless it is today.
export function moment(seconds) {
  const date = new Date(1000 * seconds);
  const today = date.toDateString() === new Date().toDateString();
  const exact = date.toISOString();
  return el("time", { datetime: exact, title: exact }, (today ? clock : calendar).format(date));
}

// A response with an error status. Any other error of fetchJson() means that there was no response.
export class HttpError extends Error {
  constructor(status, problem) {
    super(problem?.detail ?? `a response with status ${status} that is not of this service`);
    this.status = status;
    this.type = problem?.type;
  }
}

export async function fetchJson(address, { seconds = 10, ...options } = {}) {
  const signal = AbortSignal.timeout(1000 * seconds);
  const response = await fetch(address, { cache: "no-store", signal, ...options });
  const answer = await response.json().catch(() => null); // a proxy may answer with a page
  if (!response.ok || answer === null) throw new HttpError(response.status, answer);
  return answer;
}

// The problem type of a URL such as /docs#problem-overloaded.
export const slugOf = (type) => type?.match(/#problem-([\w-]+)$/)?.[1];
export const problemLink = (slug, text = slug) => el("a", { href: `docs#problem-${encodeURIComponent(slug)}` }, text);
