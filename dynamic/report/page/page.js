// One state: the selected point and the hour. Charts and texts show it.
const content = JSON.parse(document.getElementById("content").textContent);
const specs = JSON.parse(document.getElementById("specs").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const views = new Map();
const names = new Set(content.points.map((row) => row.name));
const state = { picked: (content.points[1] ?? content.points[0]).name, hour: 12 };

function theme() {
  const text = dark.matches ? "#e8eaed" : "#1a1c20";
  const line = dark.matches ? "#454c55" : "#d7dbe0";
  return {
    background: "transparent",
    font: "system-ui, sans-serif",
    text: { color: text },
    view: { stroke: line },
    axis: { labelColor: text, titleColor: text, gridColor: line, domainColor: line, tickColor: line,
      labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" },
    legend: { labelColor: text, titleColor: text, labelFontSize: 12, titleFontSize: 12 },
    range: { category: dark.matches ? ["#56b4e9", "#999fa8", "#e69f00", "#009e73", "#cc79a7", "#f0e442"]
      : ["#0072b2", "#8a9099", "#d55e00", "#009e73", "#cc79a7", "#8a6d00"] },
    line: { color: dark.matches ? "#56b4e9" : "#0072b2" },
    bar: { color: dark.matches ? "#56b4e9" : "#0072b2" },
  };
}

async function draw(place) {
  const key = place.dataset.chart;
  views.get(key)?.finalize();
  const result = await vegaEmbed(place, specs[key], { renderer: "svg", actions: false, config: theme(), tooltip: { theme: dark.matches ? "dark" : "light" } });
  views.set(key, result.view);
  result.view.addEventListener("click", (event, item) => {
    if (item && item.datum && names.has(item.datum.name)) pick(item.datum.name);
  });
  await result.view.signal("picked", state.picked).signal("hour", state.hour).runAsync();
}

function signal(name, value) {
  for (const view of views.values()) view.signal(name, value).runAsync();
}

function pick(name) {
  state.picked = name;
  for (const part of document.querySelectorAll(".of-point")) part.hidden = part.dataset.point !== name;
  for (const row of document.querySelectorAll("#points tbody tr")) {
    row.classList.toggle("picked", row.dataset.point === name);
    row.querySelector("input").checked = row.dataset.point === name;
  }
  signal("picked", name);
}

function scrub(index) {
  const moment = content.day.moments[index];
  state.hour = moment.hour;
  const minutes = Math.round(moment.hour * 60);
  const clock = `${String(Math.floor(minutes / 60)).padStart(2, "0")}:${String(minutes % 60).padStart(2, "0")}`;
  const percent = (value) => (value === null ? "unknown" : `${Math.round(value * 100)}%`);
  const degrees = moment.temperature_c === null ? "unknown" : `${moment.temperature_c.toFixed(1)} C`;
  document.getElementById("clock").textContent = clock;
  document.getElementById("hour").setAttribute("aria-valuetext", clock);
  document.getElementById("moment").textContent =
    `Point ${moment.point}. Battery ${percent(moment.battery)}, temperature ${degrees}, ` +
    `${moment.answered} answers in five minutes. ${moment.reason}`;
  signal("hour", moment.hour);
}

for (const input of document.querySelectorAll("input[name=point]")) {
  input.addEventListener("change", () => pick(input.value));
}
const hour = document.getElementById("hour");
if (hour) hour.addEventListener("input", () => scrub(Number(hour.value)));

for (const image of document.querySelectorAll("[data-picture]")) image.src = content.pictures[image.dataset.picture];

const places = [...document.querySelectorAll("[data-chart]")];
const drawAll = () => Promise.all(places.map(draw));
dark.addEventListener("change", drawAll);
await drawAll();
pick(state.picked);
if (hour) scrub(Number(hour.value));
document.documentElement.dataset.ready = "yes";
