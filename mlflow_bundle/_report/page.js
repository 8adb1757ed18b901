"use strict";
// The page of one archive. Names come from strangers: they reach the page as text only, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const element = (name, text, className) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  const escaped = (text) => element("i", text).innerHTML;
  const label = (run) => (run.name ? `${run.name} · ${run.id.slice(0, 8)}` : run.id.slice(0, 12));

  byId("title").textContent = data.title;
  byId("holds").textContent = Object.fromEntries(data.about).holds;
  for (const section of document.querySelectorAll("main section")) {
    const link = element("a", section.querySelector("h2").textContent);
    link.href = `#${section.id}`;
    byId("nav").append(link);
  }
  for (const [name, value] of data.about) {
    const row = element("tr");
    row.append(element("th", name), element("td", value, /root|snapshot/.test(name) ? "digest" : ""));
    byId("about-table").append(row);
  }
  for (const sentence of data.limits) byId("limits").append(element("li", sentence));

  // -- tables ---------------------------------------------------------------------------------------------------------
  const numeric = (wanted, value) => {
    const found = /^\s*(<=|>=|<|>|=)?\s*(-?[\d.]+(?:e[+-]?\d+)?)\s*$/i.exec(wanted);
    const [number, limit] = [value === null || value === "" ? NaN : Number(value), found ? Number(found[2]) : NaN];
    if (!found || (!found[1] && Number.isNaN(number))) return String(value ?? "").toLowerCase().includes(wanted.trim().toLowerCase());
    if (Number.isNaN(number)) return false;
    return { "<": number < limit, ">": number > limit, "<=": number <= limit, ">=": number >= limit }[found[1]] ?? number === limit;
  };
  const byNumber = (a, b) => {
    const [left, right] = [a === null || a === "" ? NaN : Number(a), b === null || b === "" ? NaN : Number(b)];
    if (Number.isNaN(left) && Number.isNaN(right)) return String(a ?? "").localeCompare(String(b ?? ""));
    return Number.isNaN(left) ? -1 : Number.isNaN(right) ? 1 : left - right;
  };
  const column = (title, field, more = {}) => ({
    title: escaped(title), field, formatter: "plaintext", headerFilter: "input", headerFilterFunc: numeric, sorter: byNumber, ...more,
  });
  const short = (cell) => {
    const value = cell.getValue();
    return element("span", typeof value === "number" ? Number(value.toPrecision(6)) : value ?? "");
  };
  const table = (id, columns, rows, more = {}) =>
    new Tabulator(`#${id}`, {
      columns, data: rows, layout: "fitDataFill", nestedFieldSeparator: false, placeholder: "nothing", ...more,
    });

  const rows = data.runs.map((run, number) => {
    const row = { number, id: run.id.slice(0, 12), name: run.name, experiment: run.experiment, status: run.status, start: run.start, seconds: run.seconds };
    run.params.forEach((value, place) => { row[`p${place}`] = value; });
    run.metrics.forEach((value, place) => { row[`m${place}`] = value; });
    return row;
  });
  const wide = { minWidth: 90, maxInitialWidth: 220 };
  const runs = table("run-table", [
    column("run", "id", { frozen: true, headerFilterFunc: "like" }), column("name", "name", { headerFilterFunc: "like", ...wide }), column("experiment", "experiment", wide), column("status", "status"),
    column("started", "start"), column("seconds", "seconds", { hozAlign: "right" }),
    ...data.metrics.map((name, place) => column(name, `m${place}`, { hozAlign: "right", formatter: short, ...wide })),
    ...data.params.map((name, place) => column(name, `p${place}`, wide)),
  ], rows, { height: Math.min(460, 80 + 30 * rows.length), selectableRows: true, index: "number" });

  if (data.models.length) {
    table("model-table", ["name", "kind", "aliases", "description", "created"].map((name) => column(name, name, wide)), data.models, { maxHeight: 320 });
    table("version-table", ["name", "version", "stage", "status", "run", "source", "created"].map((name) => column(name, name, wide)), data.versions, { maxHeight: 420 });
  } else byId("model-table").textContent = "none in this archive";
  table("experiment-table", ["id", "name", "state", "runs", "created"].map((name) => column(name, name, wide)), data.experiments, { maxHeight: 320 });

  // -- curves ---------------------------------------------------------------------------------------------------------
  const curves = new Map();
  for (const [run, key, count, steps, values] of data.curves) {
    if (!curves.has(key)) curves.set(key, new Map());
    curves.get(key).set(run, { count, points: steps.map((step, place) => [step, values[place]]) });
  }
  const option = (select, text, value, chosen) => {
    const made = element("option", text);
    made.value = value;
    made.selected = Boolean(chosen);
    select.append(made);
  };
  const longest = (key) => Math.max(...[...curves.get(key).values()].map((curve) => curve.count));
  const keys = [...curves.keys()].sort();
  const first = keys.reduce((best, key) => (best !== undefined && longest(best) >= longest(key) ? best : key), undefined);
  keys.forEach((key) => option(byId("metric"), key, key, key === first));
  const common = { animation: false, grid: { left: 70, right: 40, top: 72, bottom: 60 }, legend: { type: "scroll", top: 6 } };
  // Steps of the golden angle: as many colours as there are series, and neighbours far apart.
  const colours = (count) => Array.from({ length: count }, (_, place) =>
    `hsl(${Math.round(215 + place * 137.508) % 360}, 65%, ${[45, 62, 33][place % 3]}%)`);
  const tooltip = { renderMode: "richText", confine: true };
  const curveChart = echarts.init(byId("curve-chart"));
  const chosenRuns = () => {
    const picked = runs.getSelectedData().map((row) => row.number);
    return picked.length ? picked : rows.slice(0, 5).map((row) => row.number);
  };
  const drawCurves = () => {
    const keys = [...byId("metric").selectedOptions].map((made) => made.value);
    const series = keys.flatMap((key) => chosenRuns().filter((run) => curves.get(key).has(run)).map((run) => {
      const { count, points } = curves.get(key).get(run);
      const name = keys.length > 1 ? `${label(data.runs[run])} · ${key}` : label(data.runs[run]);
      return { type: "line", name: count > points.length ? `${name} (${points.length} of ${count})` : name, data: points, showSymbol: points.length < 40, connectNulls: false };
    }));
    curveChart.setOption({
      ...common, series, color: colours(series.length), tooltip: { ...tooltip, trigger: "axis" }, dataZoom: [{ type: "inside" }, { type: "slider", height: 18, bottom: 8 }],
      xAxis: { type: "value", name: "step", min: "dataMin", max: "dataMax" }, yAxis: { type: byId("log").checked ? "log" : "value", scale: true },
    }, true);
  };

  // -- params against metrics -----------------------------------------------------------------------------------------
  data.params.forEach((name, place) => option(byId("x"), `param ${name}`, `p${place}`, place === 0));
  data.metrics.forEach((name, place) => option(byId("x"), `metric ${name}`, `m${place}`, false));
  data.metrics.forEach((name, place) => option(byId("y"), `metric ${name}`, `m${place}`, place === 0));
  const compareChart = echarts.init(byId("compare-chart"));
  const isNumber = (value) => value !== null && value !== "" && Number.isFinite(Number(value));
  const drawComparison = () => {
    const [x, y] = [byId("x").value, byId("y").value];
    const shown = runs.getData("active").filter((row) => row[x] !== null && row[x] !== undefined && isNumber(row[y]));
    const onScale = shown.every((row) => isNumber(row[x]));
    const groups = new Map();
    for (const row of shown) {
      if (!groups.has(row.experiment)) groups.set(row.experiment, []);
      groups.get(row.experiment).push([onScale ? Number(row[x]) : String(row[x]), Number(row[y]), label(data.runs[row.number])]);
    }
    const name = (select) => (select.selectedOptions[0] ? select.selectedOptions[0].textContent.replace(/^(param|metric) /, "") : "");
    compareChart.setOption({
      ...common, color: colours(groups.size), tooltip: { ...tooltip, trigger: "item", formatter: (point) => `${point.value[2]}\n${point.value[0]}, ${point.value[1]}` },
      xAxis: { type: onScale ? "value" : "category", scale: true, name: name(byId("x")), nameLocation: "middle", nameGap: 32 },
      yAxis: { type: "value", scale: true, name: name(byId("y")) },
      series: [...groups].map(([group, points]) => ({ type: "scatter", name: group, data: points, symbolSize: 9 })),
    }, true);
  };

  // -- files ----------------------------------------------------------------------------------------------------------
  const size = (bytes) => (bytes < 1024 ? `${bytes} B` : bytes < 1048576 ? `${(bytes / 1024).toFixed(1)} KiB` : `${(bytes / 1048576).toFixed(1)} MiB`);
  const listFiles = () => {
    const place = byId("file-list");
    place.replaceChildren();
    const listed = data.files.of[byId("file-run").value] ?? [];
    if (!listed.length) place.textContent = "no files";
    const made = element("table");
    for (const [path, bytes, digest, state] of listed) {
      const row = element("tr");
      const named = element("td", path);
      if (digest && data.files.images[digest]) {
        const image = element("img");
        image.src = data.files.images[digest];
        image.alt = path;
        named.append(image);
      }
      row.append(named, element("td", size(bytes)), element("td", digest ? digest.slice(0, 16) : state, "digest"));
      made.append(row);
    }
    if (listed.length) place.append(made);
  };
  const offerRuns = () => {
    const select = byId("file-run");
    const picked = chosenRuns();
    const others = Object.keys(data.files.of).map(Number).filter((run) => !picked.includes(run)).slice(0, 500);
    select.replaceChildren();
    [...picked, ...others].forEach((run) => option(select, label(data.runs[run]), run, false));
    listFiles();
  };

  const drawAll = () => { drawCurves(); offerRuns(); };
  runs.on("tableBuilt", () => { drawAll(); drawComparison(); document.body.dataset.ready = "yes"; });
  runs.on("rowSelectionChanged", drawAll);
  runs.on("dataFiltered", (_, kept) => {
    byId("shown").textContent = `${kept.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} runs`;
    setTimeout(drawComparison, 0);
  });
  byId("metric").addEventListener("change", drawCurves);
  byId("log").addEventListener("change", drawCurves);
  byId("x").addEventListener("change", drawComparison);
  byId("y").addEventListener("change", drawComparison);
  byId("file-run").addEventListener("change", listFiles);
  window.addEventListener("resize", () => { curveChart.resize(); compareChart.resize(); });
})();
