"use strict";
// The address keeps what is shown: #sort=-recovered&filter=resnet20 (a minus: descending).
const students = JSON.parse(document.getElementById("data")?.textContent ?? "[]");
const table = document.getElementById("table");
const filter = document.getElementById("filter");
const NETWORKS = {
  teacher: "teacher", pruned: "pruned", batchnorm: "batch norm only", noise: "noise",
  procedural: "procedural pictures", recovered: "recovered", student: "student", real: "real images",
};
const LINES = ["recovered", "real", "batchnorm", "pruned", "procedural", "noise"]; // colours of settings, in turn
let shown = students;

function readState() {
  const state = new URLSearchParams(location.hash.slice(1));
  return { sort: state.get("sort") ?? "", filter: state.get("filter") ?? "" };
}

function writeState(state) {
  const kept = Object.fromEntries(Object.entries(state).filter(([, value]) => value));
  history.replaceState(null, "", "#" + new URLSearchParams(kept));
  show(state);
}

function show(state) {
  filter.value = state.filter;
  const words = state.filter.toLowerCase().split(/\s+/).filter(Boolean);
  const told = (student) => `${student.name} ${student.model} ${student.setting} seed=${student.seed}`.toLowerCase();
  const fits = students.map((student) => words.every((word) => told(student).includes(word)));
  shown = students.filter((_, index) => fits[index]);

  const key = state.sort.replace(/^-/, "");
  const sign = state.sort.startsWith("-") ? -1 : 1;
  const order = students.map((_, index) => index);
  if (key) order.sort((a, b) => compare(students[a][key], students[b][key], sign));
  const rows = new Map([...table.tBodies[0].rows].map((row) => [Number(row.dataset.place), row]));
  for (const index of order) {
    rows.get(index).hidden = !fits[index];
    table.tBodies[0].append(rows.get(index));
  }
  for (const head of table.tHead.rows[0].cells) {
    if (key && head.dataset.key === key) head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    else head.removeAttribute("aria-sort");
  }
  document.getElementById("shown").textContent = `${shown.length} of ${students.length} runs`;
  plotAll();
}

function compare(a, b, sign) {
  if (a == null || b == null) return (a == null) - (b == null); // unknown ones last, either way
  return sign * (typeof a === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true }));
}

function plotAll() {
  for (const place of document.querySelectorAll("[data-plot]")) {
    const key = place.dataset.plot;
    const series = key === "sparsity" ? networkLines() : studentPoints(key);
    const measures = [...new Set(shown.map((student) => student.measure))].join(" or ") || "score";
    const title = { sparsity: "sparsity (%)", seconds: "seconds", kilobytes: "KB" }[key];
    draw(place, series, { x: title, y: `${measures} (%)`, log: key !== "sparsity" });
  }
}

// One line for each network of each setting, over the amounts that were pruned.
function networkLines() {
  const series = [];
  for (const [network, name] of Object.entries(NETWORKS)) {
    const known = shown.filter((student) => student[network] != null && student.sparsity != null);
    for (const line of groups(known, (student) => student.line)) {
      const middle = groups(line, (student) => student.amount).map((seeds) => ({
        x: mean(seeds.map((student) => student.sparsity)), y: mean(seeds.map((student) => student[network])),
      }));
      const points = line.map((student) => ({ x: student.sparsity, y: student[network], student, name }));
      series.push({ name, network, colour: network, points, line: middle.sort((a, b) => a.x - b.x) });
    }
  }
  return series;
}

// A point for each student; a colour is a setting where there are few enough to tell apart.
function studentPoints(key) {
  const lines = [...new Set(students.map((student) => student.line))];
  const few = lines.length > 1 && lines.length <= LINES.length;
  return groups(shown, (student) => (few ? student.line : "")).map((group) => ({
    name: few ? group[0].line : "",
    colour: few ? LINES[lines.indexOf(group[0].line)] : "recovered",
    points: group.filter((student) => student.score != null && student[key] > 0)
      .map((student) => ({ x: student[key], y: student.score, student, name: "student" })),
    line: [],
  }));
}

function groups(items, key) {
  const found = new Map();
  for (const item of items) found.set(key(item), [...(found.get(key(item)) ?? []), item]);
  return [...found.values()];
}

const text = (value, digits) => value?.toFixed(digits) ?? "?";
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

function element(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function draw(place, series, axes) {
  const [width, height, left, bottom, right, top] = [place.clientWidth, 300, 40, 44, 12, 22];
  const points = series.flatMap((one) => one.points);
  place.replaceChildren();
  if (!points.length || !width) return;
  const scale = axes.log ? Math.log10 : (value) => value;
  const [low, high] = range(points.map((point) => scale(point.x)), axes.log ? 0.15 : 4);
  const [bottomValue, topValue] = range(points.map((point) => point.y), 4).map((y) => Math.min(100, Math.max(0, y)));
  const x = (value) => left + ((scale(value) - low) / (high - low)) * (width - left - right);
  const y = (value) => height - bottom - ((value - bottomValue) / (topValue - bottomValue)) * (height - bottom - top);

  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": `${axes.y} against ${axes.x}` });
  for (const tick of ticks(bottomValue, topValue, 5)) {
    svg.append(element("line", { class: "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }));
    svg.append(element("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, String(tick)));
  }
  const along = axes.log && high - low > 0.5 ? logTicks(low, high) : ticks(axes.log ? 10 ** low : low, axes.log ? 10 ** high : high, width / 60);
  for (const tick of along.filter((value) => x(value) >= left - 1 && x(value) <= width - right + 1)) {
    svg.append(element("text", { x: x(tick), y: height - bottom + 18, "text-anchor": "middle" }, tick.toLocaleString("en")));
  }
  svg.append(element("text", { x: 0, y: 10 }, axes.y));
  svg.append(element("text", { x: width - right, y: height - 6, "text-anchor": "end" }, axes.x));
  for (const one of series.filter((found) => found.line.length > 1)) {
    const path = one.line.map((point) => `${x(point.x).toFixed(1)},${y(point.y).toFixed(1)}`).join(" ");
    const line = element("polyline", { points: path, class: one.network });
    line.style.setProperty("--colour", `var(--${one.colour})`);
    svg.append(line);
  }
  for (const one of series) {
    for (const point of one.points) {
      const label = `${point.student.name}: ${point.name} ${point.y.toFixed(1)} %, sparsity ${text(point.student.sparsity, 1)} %, ${text(point.student.seconds, 0)} s`;
      const dot = element("circle", { cx: x(point.x), cy: y(point.y), r: 4.5 }, element("title", {}, label));
      dot.style.setProperty("--colour", `var(--${one.colour})`);
      dot.addEventListener("click", () => openRun(`run-${point.student.place}`));
      svg.append(dot);
    }
  }
  place.append(svg, legend(series));
}

function range(values, least) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const margin = Math.max((high - low) * 0.06, high - low < least ? least / 2 : 0);
  return [low - margin, high + margin];
}

function ticks(low, high, count) {
  const power = 10 ** Math.floor(Math.log10((high - low) / count));
  const step = [1, 2, 5].map((size) => size * power).find((size) => (high - low) / size <= count) ?? 10 * power;
  const found = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + 1e-9; tick += step) found.push(Number(tick.toFixed(1)));
  return found;
}

function logTicks(low, high) {
  const digits = high - low > 1.6 ? [1] : high - low > 0.7 ? [1, 2, 5] : [1, 1.5, 2, 3, 5, 7];
  const found = [];
  for (let power = Math.floor(low); power <= high; power += 1) found.push(...digits.map((digit) => digit * 10 ** power));
  return found;
}

function legend(series) {
  const list = document.createElement("ul");
  list.className = "legend";
  for (const [name, colour] of new Map(series.filter((one) => one.name).map((one) => [one.name, one.colour]))) {
    const item = document.createElement("li");
    item.textContent = name;
    item.style.setProperty("--colour", `var(--${colour})`);
    list.append(item);
  }
  return list;
}

function openRun(id) {
  const run = document.getElementById(id);
  if (run?.tagName !== "DETAILS") return;
  run.open = true;
  run.scrollIntoView();
}

document.addEventListener("click", (event) => {
  const link = event.target.closest?.('a[href^="#"]');
  if (!link) return;
  event.preventDefault(); // the address is for what the table shows
  const id = link.getAttribute("href").slice(1);
  openRun(id);
  document.getElementById(id)?.scrollIntoView();
});

if (table) {
  filter.addEventListener("input", () => writeState({ ...readState(), filter: filter.value }));
  table.tHead.addEventListener("click", (event) => {
    const key = event.target.closest("button")?.parentElement.dataset.key;
    const { sort, filter } = readState();
    if (key) writeState({ sort: sort === key ? `-${key}` : key, filter });
  });
  window.addEventListener("hashchange", () => show(readState()));
  new ResizeObserver(plotAll).observe(document.querySelector("[data-plot]"));
  show(readState());
}
