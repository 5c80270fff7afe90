// The page of `streamkit bench`.
const rate = (v) => (v === null || v === undefined ? "-" : count(Math.round(v)));
const shares = make("div", { class: "share", role: "img", "aria-label": "share of each stage" });
Object.entries(DATA.stages).forEach(([name, stage], i) => {
  const part = make("span", { title: `${name}: ${stage.share} %` });
  part.style.width = `${stage.share}%`;
  part.style.background = `var(--s${i})`;
  shares.append(part);
});

function rates() {
  const all = [...Object.entries(DATA.stages).map(([name, s]) => [name, s.samples_per_s]), ["all, one thread", DATA.one_thread],
    [`Loader, ${DATA.threads} threads`, DATA.loader], [`tf.data, ${DATA.threads} threads`, DATA.frontend],
    ...Object.entries(DATA.limits).map(([name, limit]) => [name, limit.samples_per_s])].filter(([, v]) => v);
  const most = Math.log10(Math.max(...all.map(([, v]) => v)));
  return make("div", { class: "bars" }, ...all.map(([name, v]) => {
    const length = make("span", { class: "length" });
    length.style.width = `${(100 * Math.max(0, Math.log10(v))) / most}%`;
    return make("div", { class: "bar" }, make("span", { class: "name", title: name }, name), length, make("span", { class: "count" }, rate(v)));
  }));
}

const main = document.getElementById("main");
const size = DATA.image_size ? `, images ${DATA.image_size.join("x")}` : "";
main.append(make("header", {}, make("h1", {}, `${DATA.out}: ${DATA.split}`),
  make("p", { class: "quiet" }, `${count(DATA.samples)} samples, batches of ${DATA.batch_size}${size}, ${DATA.threads} threads`)));
const panels = make("div", { class: "panels" });
panels.append(panel("Where the time goes", shares, table(["stage", "samples/s", "share"],
  Object.entries(DATA.stages).map(([name, s]) => [name, rate(s.samples_per_s), `${s.share} %`]))));
panels.append(panel("Samples a second (logarithmic)", rates()));
panels.append(panel("What would help", ...DATA.conclusion.split("\n").map((line) => make("p", {}, line))));
if (DATA.simulation) {
  const found = DATA.simulation;
  panels.append(panel("Cluster, a model", table(["", ""], [["bound by", found.bound], ["samples/s", rate(found.samples_per_s)],
    ["steps/s", found.steps_per_s.toFixed(2)], ["epoch", `${found.epoch_s.toFixed(1)} s`], ["cold start", `${found.cold_start_s.toFixed(2)} s`],
    ["egress an epoch", bytes(found.egress_bytes.epoch)], ["egress a start", bytes(found.egress_bytes.start)]])));
}
main.append(panels);
