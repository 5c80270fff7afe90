// The page of `scripts/train.py --report`.
const label = (name) => name.replace(/_nbytes$/, "").replaceAll("_", " ");
const optional = (value, write) => (value === null || value === undefined ? "-" : write(value));

function legend(names) {
  return make("p", {}, ...names.map((name, i) => {
    const word = make("span", {}, ` ${label(name)} `);
    word.style.color = `var(--s${i % 8})`;
    return word;
  }));
}

function plot(title, series, from, to, write) {
  const names = Object.keys(series), known = Object.values(series).flat().filter((v) => v !== null);
  if (!known.length) return null;
  return panel(title, legend(names), lines(title, Object.values(series)),
    make("p", { class: "quiet" }, `${from} to ${to}; ${write(Math.min(...known))} to ${write(Math.max(...known))}`));
}

const pick = (ending) => Object.fromEntries(Object.entries(DATA.curves).filter(([name]) => name.endsWith(ending)));
const epochs = Math.max(0, ...Object.values(DATA.curves).map((values) => values.length));
const main = document.getElementById("main");
main.append(make("header", {}, make("h1", {}, DATA.title),
  make("p", { class: "quiet" }, DATA.facts.map(([name, value]) => `${name}: ${value}`).join(", "))));
const panels = make("div", { class: "panels" });
for (const [title, ending] of [["Loss", "loss"], ["Accuracy", "accuracy"]])
  panels.append(...[plot(title, pick(ending), "epoch 1", epochs, short)].filter(Boolean));
panels.append(...[plot("Memory over time", DATA.memory, "0 s", `${DATA.seconds.toFixed(0)} s`, bytes)].filter(Boolean));
if (DATA.estimate.length)
  panels.append(panel("A step, counted from the model and measured", table(["for", "memory"], DATA.estimate.map(([name, n]) => [label(name), bytes(n)]))));
main.append(panels);
if (DATA.missing) main.append(make("p", { class: "quiet" }, `Nothing is known of a GPU: ${DATA.missing}.`));
if (DATA.rows.length) {
  const head = ["technique", "parameters", "zeros", "size", "deflated", "peak of a step", "images/s, forward", "accuracy"];
  main.append(panel("What each technique made of the model", table(head, DATA.rows.map((row) => [row.name, count(row.parameters),
    optional(row.zeros, (v) => `${(100 * v).toFixed(1)} %`), bytes(row.nbytes), bytes(row.deflated_nbytes), optional(row.step_nbytes, bytes), optional(row.images_per_second, (v) => count(Math.round(v))),
    optional(row.accuracy, (v) => v.toFixed(4))]))));
}
