"use strict";
// Small charts as SVG elements. Text from data is only ever set as textContent or as an attribute's value.
const DATA = JSON.parse(document.getElementById("data").textContent);

// Long lists of children come as one array: a call takes only so many arguments.
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") element.className = value;
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key in element && typeof value === "boolean") element[key] = value;
    else element.setAttribute(key, value);
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) element.append(child);
  return element;
}

function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const count = (n) => n.toLocaleString("en");

function bytes(n) {
  for (const unit of ["B", "KB", "MB", "GB"]) {
    if (n < 1000) return unit === "B" ? `${n} B` : `${n.toFixed(1)} ${unit}`;
    n /= 1000;
  }
  return `${n.toFixed(1)} TB`;
}

const short = (v) => (Math.abs(v) >= 1e5 || (v !== 0 && Math.abs(v) < 1e-3) ? v.toExponential(1) : String(+v.toPrecision(4)));

function panel(title, ...children) {
  return make("section", { class: "panel" }, make("h2", {}, title), ...children);
}

function table(head, rows) {
  const cells = (tag, row) => make("tr", {}, row.map((cell) => make(tag, {}, String(cell))));
  return make("table", {}, make("thead", {}, cells("th", head)), make("tbody", {}, rows.map((row) => cells("td", row))));
}

const WIDTH = 320, HEIGHT = 190, LEFT = 42, BOTTOM = 24;

function frame(label, x, y) {
  const text = (at, value, anchor) => svg("text", { x: at[0], y: at[1], "text-anchor": anchor }, short(value));
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label },
    svg("path", { class: "axis", fill: "none", d: `M${LEFT} 6V${HEIGHT - BOTTOM}H${WIDTH - 6}` }),
    text([LEFT, HEIGHT - 8], x[0], "start"), text([WIDTH - 6, HEIGHT - 8], x[1], "end"),
    text([LEFT - 5, HEIGHT - BOTTOM], y[0], "end"), text([LEFT - 5, 14], y[1], "end"));
}

function scatter(label, points) {
  const most = [0, 1].map((axis) => Math.max(...points.map((point) => point[axis])));
  const chart = frame(label, [0, most[0]], [0, most[1]]);
  for (const [w, h, n] of points) {
    const x = LEFT + (w / most[0]) * (WIDTH - 6 - LEFT), y = HEIGHT - BOTTOM - (h / most[1]) * (HEIGHT - BOTTOM - 10);
    const dot = svg("circle", { class: "dot", cx: x.toFixed(1), cy: y.toFixed(1), r: Math.min(9, 2 + Math.sqrt(n)).toFixed(1) });
    dot.append(svg("title", {}, `${w} x ${h}: ${count(n)}`));
    chart.append(dot);
  }
  return chart;
}

function histogram(label, bins, low, high) {
  const most = Math.max(1, ...bins), wide = (WIDTH - 6 - LEFT) / bins.length;
  const chart = frame(label, [low, high], [0, most]);
  bins.forEach((n, i) => {
    const tall = (n / most) * (HEIGHT - BOTTOM - 10);
    const column = svg("rect", { class: "column", x: (LEFT + i * wide + 0.5).toFixed(2), y: (HEIGHT - BOTTOM - tall).toFixed(2),
      width: Math.max(0.5, wide - 1).toFixed(2), height: tall.toFixed(2) });
    const edge = (i) => low * (1 - i / bins.length) + high * (i / bins.length), from = edge(i), to = edge(i + 1);
    column.append(svg("title", {}, `${short(from)} to ${short(to)}: ${count(n)}`));
    chart.append(column);
  });
  return chart;
}

function lines(label, series) {
  const known = series.flat().filter((v) => v !== null);
  const low = Math.min(...known), high = Math.max(...known), span = high / 2 - low / 2 || 1; // halves: the difference may be infinite
  const chart = svg("svg", { viewBox: "0 0 180 110", role: "img", "aria-label": label });
  series.forEach((values, number) => {
    let d = "", pen = "M";
    values.forEach((v, i) => {
      if (v === null) { pen = "M"; return; }
      const x = values.length > 1 ? 4 + (172 * i) / (values.length - 1) : 90;
      d += `${pen}${x.toFixed(1)} ${(104 - 98 * ((v / 2 - low / 2) / span)).toFixed(1)}`;
      pen = "L";
    });
    chart.append(svg("path", { d, fill: "none", style: `stroke: var(--s${number % 8})`, "stroke-width": 1.3, "stroke-linejoin": "round",
      "stroke-linecap": "round" }));
  });
  if (known.length) chart.append(svg("title", {}, `${short(low)} to ${short(high)}`));
  return chart;
}
