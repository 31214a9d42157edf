// What server-sent events tell, as charts and tables; what forms say, as requests. Nothing is computed here that the server knows.

const MAX_POINTS = 4 * 3600;

const byId = (id) => document.getElementById(id);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// A number in few characters; "-" for none.
function figure(value) {
  if (value === null || value === undefined) return "-";
  const size = Math.abs(value);
  if (size >= 1e6) return (value / 1e6).toFixed(2) + "M";
  if (size >= 1e4) return (value / 1e3).toFixed(1) + "k";
  if (Number.isInteger(value) || size >= 1000) return String(Math.round(value));
  return size >= 100 ? value.toFixed(1) : size >= 1 ? value.toFixed(2) : value.toFixed(3);
}

const whole = (value) => (value === null || value === undefined ? "-" : value.toLocaleString("en"));

function clock(seconds) {
  const s = Math.floor(seconds);
  const two = (n) => String(n).padStart(2, "0");
  return s >= 3600 ? `${Math.floor(s / 3600)}:${two(Math.floor(s / 60) % 60)}:${two(s % 60)}` : `${Math.floor(s / 60)}:${two(s % 60)}`;
}

const timeOfDay = (unix) => new Date(1000 * unix).toLocaleTimeString("en-GB");

// Text only: words of a measured server are never markup.
function element(kind, text, name) {
  const made = document.createElement(kind);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
}

function fill(table, rows) {
  const body = byId(table).tBodies[0];
  body.replaceChildren(...rows.map((cells) => {
    const row = element("tr");
    for (const cell of cells) row.append(typeof cell === "object" && cell !== null ? element("td", cell.text, cell.name) : element("td", cell));
    return row;
  }));
}

// Charts: title, then lines of name, member of a point, and colour.
const CHARTS = [
  ["Requests per second", [["ok", "requests", "--good"], ["failed", "failures", "--bad"]]],
  ["Time to first token, ms", [["p50", "ttft_p50", "--accent"], ["p95", "ttft_p95", "--warn"]]],
  ["Tokens per second", [["tokens", "tokens", "--accent"]]],
  ["Between tokens, ms", [["p50", "itl_p50", "--accent"], ["p95", "itl_p95", "--warn"]]],
  ["Users and requests under way", [["users", "users", "--accent"], ["running", "running", "--good"]]],
  ["End to end, ms", [["p50", "e2e_p50", "--accent"], ["p95", "e2e_p95", "--warn"]]],
  ["The server's own requests", [["running", "server_running", "--good"], ["waiting", "server_waiting", "--warn"]]],
  ["The server's KV cache in use, share", [["in use", "server_kv", "--accent"]]],
];

let points = [];
let charts = [];

function makeCharts() {
  const home = byId("charts");
  home.replaceChildren();
  charts = CHARTS.map(([title, lines]) => {
    const box = element("div", undefined, "chart");
    box.append(element("h3", title));
    home.append(box);
    const axis = { stroke: css("--dim"), grid: { stroke: css("--line"), width: 1 }, ticks: { stroke: css("--line"), width: 1 } };
    const chart = new uPlot({
      width: 400,
      height: 190,
      cursor: { sync: { key: "time" } },
      scales: { x: { time: false }, y: { range: (_, low, high) => [0, high > 0 ? 1.1 * high : 1] } },
      axes: [
        { ...axis, values: (_, marks) => marks.map((mark) => clock(mark)) },
        { ...axis, size: 56, values: (_, marks) => marks.map((mark) => figure(mark)) },
      ],
      series: [
        { label: "time", value: (_, at) => (at === null ? "-" : clock(at)) },
        ...lines.map(([label, , color]) => ({ label, stroke: css(color), width: 2, points: { show: false }, value: (_, value) => figure(value) })),
      ],
    }, [[], ...lines.map(() => [])], box);
    return { chart, box, members: lines.map(([, member]) => member) };
  });
  resize();
}

function resize() {
  // Of all first, so that nothing is laid out twice.
  const widths = charts.map(({ box }) => box.clientWidth - 24);
  charts.forEach(({ chart }, n) => {
    if (widths[n] > 0 && widths[n] !== chart.width) chart.setSize({ width: widths[n], height: 190 });
  });
}

function drawCharts() {
  const times = points.map((point) => point.at_s);
  for (const { chart, box, members } of charts) {
    const values = members.map((member) => points.map((point) => point[member]));
    // Without any value there is nothing to see: the server may have no metrics, the load no users.
    box.hidden = points.length > 0 && values.every((line) => line.every((value) => value === null));
    chart.setData([times, ...values]);
  }
  resize();
}

let state = null;

function show(update) {
  const isNew = state === null || update.begun !== state.begun;
  if (isNew) points = [];
  points.push(...update.points);
  points.splice(0, points.length - MAX_POINTS);
  const before = state;
  state = update;

  const { about, run, phase } = update;
  const host = [about.url, about.model, about.api].filter(Boolean).join("  ");
  byId("host").textContent = host;
  byId("host-form").textContent = host;
  const named = byId("phase");
  named.textContent = update.is_leaving ? "the process ends" : phase === "preparing" && update.preparing ? update.preparing : phase;
  named.className = phase;
  if (before === null) fillForm(update.form);
  const isReady = phase === "ready";
  byId("start").hidden = !isReady;
  byId("change").hidden = isReady;
  byId("start").querySelector("button").disabled = update.is_leaving;

  const isShown = run !== null && phase !== "preparing";
  for (const id of ["charts", "statistics-section"]) byId(id).hidden = !isShown;
  if (isShown) showRun(run, update.points.length > 0 || isNew);
  else for (const id of ["users-now", "rate-now", "tokens-now", "failed-now", "time-now"]) byId(id).textContent = "-";
  byId("failures-section").hidden = !isShown || run.errors.length === 0;
  byId("downloads-section").hidden = !update.has_results;
  if (update.done) showDone(update.done);
  if (update.log.length > 0) showLog(update.log);
}

function showRun(run, hasPoints) {
  const last = points.at(-1);
  const isChanging = run.is_steered && run.users_wanted !== null && run.users !== run.users_wanted;
  byId("users-now").textContent = run.users === null ? "-" : isChanging ? `${run.users} → ${run.users_wanted}` : run.users;
  byId("rate-now").textContent = run.is_over || !last ? "-" : figure(last.requests);
  byId("tokens-now").textContent = run.is_over || !last ? "-" : figure(last.tokens);
  const failed = byId("failed-now");
  const ended = run.done + run.failed;
  failed.textContent = ended === 0 ? "0" : `${whole(run.failed)} (${figure((100 * run.failed) / ended)} %)`;
  failed.className = run.failed > 0 ? "bad" : "";
  byId("time-now").textContent = clock(run.at_s) + (run.duration_s === null ? "" : ` of ${clock(run.duration_s)}`);

  byId("run-title").textContent = `Run ${state.number}: ${run.label}`;
  const isStopping = state.phase === "stopping";
  for (const part of document.querySelectorAll(".of-steered")) part.hidden = !run.is_steered || isStopping;
  const stop = byId("stop");
  const isSumming = isStopping && run.running === 0;
  stop.textContent = isSumming ? "Summing up" : isStopping ? `Cut ${run.running} still running` : "Stop";
  stop.disabled = isSumming;

  byId("statistics-scope").textContent = run.is_over
    ? "measured window, exact"
    : "so far, within 0.1 %" + (run.warmup > 0 ? `, without ${run.warmup} of the warm-up` : "");
  const counts = [`${whole(run.started)} started`, `${whole(run.done)} ok`, `${whole(run.failed)} failed`, `${whole(run.running)} under way`];
  if (run.has_timed_starts) counts.push(`${whole(run.dropped)} dropped`, `${whole(run.late)} late`);
  counts.push(`${whole(run.tokens)} tokens`);
  byId("counts").textContent = counts.join("   ·   ");
  fill("statistics", run.statistics.map(({ title, all, recent, per_s }) => [
    title, whole(all?.count ?? 0),
    ...["p50", "p95", "p99", "mean", "min", "max"].map((name) => figure(all?.[name])),
    figure(recent?.p50), figure(recent?.p95), figure(per_s),
  ]));
  for (const cell of document.querySelectorAll("#statistics tr > :nth-child(n + 9)")) cell.hidden = run.is_over;
  showHistogram(run);
  fill("failures", run.errors.map(({ kind, count, example }) => [kind, whole(count), { text: example, name: "words" }]));

  const notes = [...run.notes];
  if (run.missed_looks > 0) notes.push(`this page missed ${run.missed_looks} looks: its percentiles lack their requests, the results do not`);
  byId("notes").hidden = notes.length === 0;
  byId("notes").textContent = notes.join("\n");
  if (hasPoints) drawCharts();
}

function showHistogram(run) {
  const most = Math.max(1, ...run.histogram.map((bar) => bar.count));
  byId("histogram").replaceChildren(...run.histogram.map((bar) => {
    const column = element("div");
    column.style.height = `${(100 * bar.count) / most}%`;
    column.title = `${figure(bar.from_ms)} to ${figure(bar.to_ms)} ms: ${whole(bar.count)}`;
    return column;
  }));
  const what = run.statistics[0].all ? "Time to first token" : "End to end";
  const range = run.histogram.length > 0 ? `: ${figure(run.histogram[0].from_ms)} to ${figure(run.histogram.at(-1).to_ms)} ms, each bar wider by the same factor` : "";
  byId("histogram-title").textContent = what + range;
}

function showDone(done) {
  byId("runs-section").hidden = done.length === 0;
  fill("runs", done.map((run) => [
    run.label, timeOfDay(run.began_unix_s), figure(run.wall_s), whole(run.complete),
    { text: whole(run.failed), name: run.failed > 0 ? "bad" : "" }, whole(run.dropped), figure(run.requests_per_s), figure(run.tokens_per_s),
    ...[run.ttft, run.itl, run.e2e].flatMap((values) => [figure(values?.p50), figure(values?.p95)]),
  ]).reverse());
}

function showLog(lines) {
  byId("log-section").hidden = false;
  for (const { unix_s, text } of lines) {
    const line = element("li");
    line.append(element("time", timeOfDay(unix_s)), text);
    byId("log").prepend(line);
  }
  while (byId("log").childElementCount > 200) byId("log").lastElementChild.remove();
}

// Forms.

function fillForm(form) {
  const start = byId("start");
  start.elements.kind.value = form.rate === null ? "users" : "rate";
  if (form.users !== null) start.elements.users.value = form.users;
  if (form.rate !== null) start.elements.rate.value = form.rate;
  if (form.duration_s !== null) start.elements.duration_s.value = form.duration_s;
  chooseKind();
}

function chooseKind() {
  const kind = byId("start").elements.kind.value;
  for (const part of document.querySelectorAll(".of-users")) part.hidden = kind !== "users";
  for (const part of document.querySelectorAll(".of-rate")) part.hidden = kind !== "rate";
}

async function post(path, body, form) {
  const words = form.querySelector(".refusal");
  words.textContent = "";
  for (const input of form.querySelectorAll(".refused")) input.classList.remove("refused");
  try {
    const answer = await fetch(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
    if (answer.ok) return true;
    const refusal = await answer.json();
    words.textContent = refusal.field ? `${refusal.field}: ${refusal.error}` : refusal.error;
    form.elements[refusal.field]?.classList?.add("refused");
  } catch (error) {
    words.textContent = `no answer: ${error.message}`;
  }
  return false;
}

// Values of the named inputs as numbers; empty ones are left out.
function numbers(form, names) {
  const given = names.filter((name) => form.elements[name].value !== "");
  return Object.fromEntries(given.map((name) => [name, Number(form.elements[name].value)]));
}

byId("start").addEventListener("change", chooseKind);
byId("start").addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.target;
  const body = form.elements.kind.value === "users"
    ? numbers(form, ["users", "spawn_rate", "duration_s"])
    : { ...numbers(form, ["rate", "duration_s"]), arrival: form.elements.arrival.value };
  if (form.elements.kind.value === "users") {
    byId("change").elements.users.value = form.elements.users.value;
    byId("change").elements.spawn_rate.value = form.elements.spawn_rate.value;
  }
  post("/api/start", body, form);
});
byId("change").addEventListener("submit", (event) => {
  event.preventDefault();
  post("/api/users", numbers(event.target, ["users", "spawn_rate"]), event.target);
});
byId("stop").addEventListener("click", () => post("/api/stop", {}, byId("change")));

makeCharts();
addEventListener("resize", resize);
// Colours of the charts are fixed when they are made.
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  makeCharts();
  drawCharts();
});

const { downloads } = await (await fetch("/api/state")).json();
byId("downloads").replaceChildren(...downloads.map((name) => {
  const link = element("a", name);
  link.href = `/download/${name}`;
  return link;
}));

const events = new EventSource("/api/events");
events.onopen = () => {
  byId("lost").hidden = true;
  // Everything comes again from the beginning.
  state = null;
  byId("log").replaceChildren();
};
events.onerror = () => { byId("lost").hidden = false; };
events.onmessage = (event) => show(JSON.parse(event.data));
