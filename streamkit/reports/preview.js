// The page of `streamkit preview`: facts on top, then the drawn samples by class.
const main = document.getElementById("main");
const state = { text: "", label: null, split: null };

function bars() {
  const most = DATA.classes.reduce((largest, c) => Math.max(largest, c.count), 1);
  return make("div", { class: "bars" }, DATA.classes.map((c) => {
    const length = make("span", { class: "length" });
    length.style.width = `${(100 * c.count) / most}%`;
    const button = make("button", { class: "bar", type: "button", "aria-pressed": "false", title: `show only ${c.name}`,
      onclick: () => { state.label = state.label === c.name ? null : c.name; show(); } },
      make("span", { class: "name" }, c.name), length, make("span", { class: "count" }, count(c.count)));
    button.label = c.name;
    return button;
  }));
}

function facts() {
  const panels = make("div", { class: "panels" });
  panels.append(panel("Splits", table(["split", "samples", "shards", "size"],
    Object.entries(DATA.splits).map(([name, s]) => [name, count(s.samples), s.shards, bytes(s.bytes)]))));
  panels.append(panel("Fields", table(["field", "kind", "dtype", "shape", "encoding"], Object.entries(DATA.fields).map(([name, f]) =>
    [name, f.kind, f.dtype, f.shape.map((d) => (d === null ? "?" : d)).join("x") || "scalar", f.encoding || "-"]))));
  if (DATA.classes.length) {
    const more = DATA.more_classes, all = count(DATA.classes.length + more.count);
    const rest = more.count ? make("p", { class: "quiet" }, `and ${count(more.count)} smaller ones with ${count(more.samples)} samples`) : null;
    panels.append(panel(`${all} classes, all samples`, make("div", { class: "scroll" }, bars()), rest));
  }
  if (DATA.sizes) panels.append(panel("Width and height [pixel]", scatter("heights of images over their widths", DATA.sizes.points)));
  if (DATA.light) {
    const named = (values) => values.map((v) => v.toFixed(1)).join(", ");
    panels.append(panel("Brightness of the images shown", histogram("brightness", DATA.light.bins, 0, 256),
      make("p", { class: "quiet" }, `red, green, blue: mean ${named(DATA.light.mean)}; std ${named(DATA.light.std)}`)));
  }
  for (const c of DATA.columns) panels.append(panel(c.name, histogram(c.name, c.bins, c.low, c.high)));
  return panels;
}

function boxes(view) {
  const chart = svg("svg", { class: "over", viewBox: "0 0 1 1", preserveAspectRatio: "none" });
  view.boxes.forEach(([left, top, right, bottom], i) => {
    const box = svg("rect", { class: "box", x: left, y: top, width: Math.max(0, right - left), height: Math.max(0, bottom - top) });
    if (view.names[i] !== undefined) box.append(svg("title", {}, view.names[i]));
    chart.append(box);
  });
  return chart;
}

// Pictures get their bytes when they come near the screen, so that a page of thousands opens at once.
const near = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    entry.target.src = entry.target.later;
    near.unobserve(entry.target);
  }
}, { rootMargin: "400px" });

function picture(view, classes, alt, lazy) {
  const image = make("img", { class: classes, alt });
  if (lazy) { image.later = view.src; image.loading = "lazy"; near.observe(image); } else image.src = view.src;
  return image;
}

function stages(item, lazy) {
  const out = [];
  const image = item.views.find((v) => v.kind === "image" || v.kind === "mask");
  if (image) {
    const stage = make("div", { class: "stage" }, picture(image, "", `${image.field} of ${item.key}`, lazy));
    if (image.width) stage.style.aspectRatio = `${image.width} / ${image.height}`;
    for (const view of item.views) {
      if (view === image) continue;
      if (view.kind === "mask") stage.append(picture(view, "over", `${view.field} of ${item.key}`, lazy));
      if (view.kind === "boxes") stage.append(boxes(view));
    }
    out.push(stage);
  }
  for (const view of item.views) {
    if (view === image || view.kind === "mask" || view.kind === "boxes") continue;
    if (view.kind === "text") out.push(make("div", { class: "text" }, `${view.field}: ${view.text}`));
    if (view.kind === "lines") out.push(make("div", { class: "stage" }, lines(`${view.field} of ${item.key}`, view.lines)));
    if (view.kind === "map") out.push(make("div", { class: "stage" }, picture(view, "map", `${view.field} of ${item.key}`, lazy)));
    if (view.kind === "image") out.push(make("div", { class: "stage" }, picture(view, "", `${view.field} of ${item.key}`, lazy)));
  }
  return out;
}

function remark(view) {
  const parts = [view.width ? `${view.width} x ${view.height}` : view.shape, view.dtype, view.note];
  if (view.low !== undefined) parts.push(`${short(view.low)} to ${short(view.high)}`);
  if (view.kind === "mask") parts.push(`values ${view.values.slice(0, 20).join(", ")}`);
  if (view.kind === "boxes") parts.push(`${view.boxes.length} boxes`, [...new Set(view.names)].join(", "));
  if (view.kind === "text") parts.push(view.text);
  return [view.field, parts.filter(Boolean).join(", ")];
}

const dialog = make("dialog", { onclick: (event) => { if (event.target === dialog) dialog.close(); } });

function open(item) {
  const rows = [["split", item.split], ...(item.label === null ? [] : [["class", item.label]]), ...item.views.map(remark)];
  const close = make("button", { type: "button", onclick: () => dialog.close() }, "Close");
  dialog.replaceChildren(make("p", { class: "key" }, item.key), ...stages(item, false), table(["field", "value"], rows), close);
  dialog.showModal();
}

function card(item) {
  return make("button", { class: "card", type: "button", title: item.key, onclick: () => open(item) },
    ...stages(item, true), make("span", { class: "key" }, item.key.slice(item.key.lastIndexOf("/") + 1)));
}

const found = make("p", { class: "quiet", "aria-live": "polite" });
const groups = make("div");
const skipped = make("div");
let choices = null;

function show() {
  const text = state.text.toLowerCase();
  const items = DATA.items.filter((item) => item.key.toLowerCase().includes(text)
    && (state.label === null || item.label === state.label) && (state.split === null || item.split === state.split));
  found.textContent = `${count(items.length)} of ${count(DATA.items.length)} shown`;
  near.disconnect();
  const order = new Map(DATA.classes.map((c, i) => [c.name, i]));
  const byLabel = new Map();
  for (const item of items) {
    if (byLabel.has(item.label)) byLabel.get(item.label).push(item); else byLabel.set(item.label, [item]);
  }
  const last = DATA.classes.length; // where classes come that are not listed
  const sorted = [...byLabel].sort((a, b) => (order.get(a[0]) ?? last) - (order.get(b[0]) ?? last));
  groups.replaceChildren();
  for (const [label, some] of sorted) {
    if (label !== null) groups.append(make("h3", {}, label));
    groups.append(make("div", { class: "cards" }, some.map(card)));
  }
  const left = DATA.skipped.items.filter((s) => s.key.toLowerCase().includes(text));
  skipped.replaceChildren(table(["key", "reason"], left.map((s) => [s.key, s.reason])));
  for (const bar of document.querySelectorAll("button.bar")) bar.setAttribute("aria-pressed", String(bar.label === state.label));
  if (choices) choices.value = state.label === null ? "" : `=${state.label}`;
}

function select(title, values, change) {
  const options = values.map((v) => make("option", { value: `=${v}` }, v));
  return make("select", { "aria-label": title, onchange: (event) => { change(event.target.value ? event.target.value.slice(1) : null); show(); } },
    make("option", { value: "" }, title), options);
}

function toggle(text, name) {
  const box = make("input", { type: "checkbox", checked: true, onchange: () => document.body.classList.toggle(name, !box.checked) });
  return make("label", {}, box, text);
}

function controls() {
  const bar = make("div", { class: "controls" });
  bar.append(make("input", { type: "search", placeholder: "Search by key", "aria-label": "Search by key",
    oninput: (event) => { state.text = event.target.value; show(); } }));
  if (DATA.classes.length) {
    choices = select("All classes", DATA.classes.map((c) => c.name), (v) => { state.label = v; });
    bar.append(choices);
  }
  const splits = Object.keys(DATA.splits);
  if (splits.length > 1) bar.append(select("All splits", splits, (v) => { state.split = v; }));
  const kinds = new Set(DATA.items.flatMap((item) => item.views.map((v) => v.kind)));
  if (kinds.has("mask")) bar.append(toggle("masks", "no-masks"));
  if (kinds.has("boxes")) bar.append(toggle("boxes", "no-boxes"));
  bar.append(found);
  return bar;
}

const n = DATA.items.length;
const fair = n < DATA.samples
  ? `Shown below: ${count(n)} samples, drawn with equal chance from all ${count(DATA.samples)}.` : `All ${count(n)} samples are shown below.`;
main.append(make("header", {}, make("h1", {}, DATA.name),
  make("p", {}, `${count(DATA.samples)} samples, ${bytes(DATA.bytes)}, ${DATA.format}`), make("p", { class: "quiet" }, fair)), facts());
if (DATA.skipped.count) {
  const listed = DATA.skipped.items.length, part = listed < DATA.skipped.count ? `, the first ${count(listed)}` : "";
  const details = make("details", {}, make("summary", {}, `${count(DATA.skipped.count)} items were skipped${part}`), make("div", { class: "scroll" }, skipped));
  main.append(make("section", { class: "panel" }, details));
}
main.append(controls(), groups, dialog);
show();
