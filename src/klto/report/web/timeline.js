// Stages, links and backends over time, and below them the memory of the largest process.
"use strict";

klto.timeline = function () {
  const { stages, links, memory, modules } = klto.data;
  const host = document.getElementById("timeline-chart");
  const width = host.clientWidth || 800, narrow = width < 520;
  const left = narrow ? 72 : 110, right = 12, inner = width - left - right;
  const timed = stages.filter(s => s[2] !== null);
  host.replaceChildren();
  if (!timed.length) {
    host.append(klto.element("p", {}, "No stage ended: nothing to draw."));
    return;
  }
  const end = Math.max(...timed.map(s => s[1] + s[2]), ...memory.map(m => m[0]));
  const x = d3.scaleLinear([0, end || 1], [left, left + inner]);
  const lanes = klto.lanes(modules.filter(m => m[1] !== null && m[2] !== null && !m[5]));
  const rowHeight = 22, laneHeight = lanes.length > 8 ? 6 : 12;
  const bars = timed.map(s => ({ label: s[0], from: s[1], long: s[2], of: s, fill: s[6] === "done" ? "var(--bar)" : "var(--bad)" }));
  for (const link of links.filter(k => k[2] !== null).slice(0, narrow ? 3 : 6)) {
    bars.push({ label: link[0].split("/").pop(), from: link[1], long: link[2], of: null, fill: "var(--bar2)",
      title: `${link[0]}: ${klto.duration(link[2])}, peak ${klto.size(link[3])}, ${link[4]} at once` });
  }
  const lanesTop = 6 + bars.length * rowHeight;
  const chartTop = lanesTop + (lanes.length ? lanes.length * laneHeight + 10 : 0) + 8;
  const curve = memory.length > 1, curveHeight = curve ? 110 : 0;
  const bottom = chartTop + curveHeight;
  const svg = d3.select(host).append("svg").attr("viewBox", `0 0 ${width} ${bottom + 34}`).attr("role", "img")
    .attr("aria-label", `Stages: ${timed.map(s => `${s[0]} ${klto.duration(s[2])}`).join(", ")}`
      + (curve ? `. Largest process ${klto.size(d3.max(memory, m => m[1]))}` : ""));
  const rows = svg.append("g").selectAll("g").data(bars).join("g")
    .attr("transform", (_, i) => `translate(0,${6 + i * rowHeight})`);
  rows.append("text").attr("x", left - 6).attr("y", 13).attr("text-anchor", "end").text(b => b.label);
  rows.append("rect").attr("class", "bar").attr("x", b => x(b.from)).attr("y", 2).attr("height", rowHeight - 7).attr("rx", 2)
    .attr("width", b => Math.max(1.5, x(b.from + b.long) - x(b.from))).attr("fill", b => b.fill)
    .append("title").text(b => b.title || `${b.label}: ${klto.duration(b.long)}`
      + (b.of[4] ? `, peak ${klto.size(b.of[4])} (${b.of[5]})` : ""));
  rows.append("text").attr("y", 13)
    .attr("x", b => (x(b.from + b.long) > left + inner - 60 ? x(b.from) - 4 : x(b.from + b.long) + 4))
    .attr("text-anchor", b => (x(b.from + b.long) > left + inner - 60 && x(b.from) > left + 60 ? "end" : "start"))
    .text(b => (x(b.from + b.long) > left + inner - 60 && x(b.from) <= left + 60 ? "" : klto.duration(b.long)));
  klto.drawLanes(svg, lanes, x, lanesTop, laneHeight, left);
  if (curve) klto.drawMemory(svg, memory, x, chartTop, curveHeight, left);
  svg.append("g").attr("class", "axis").attr("transform", `translate(0,${bottom})`)
    .call(d3.axisBottom(x).ticks(narrow ? 4 : 8).tickFormat(klto.duration));
};

// Backends packed into as few rows as ran at once.
klto.lanes = function (modules) {
  const lanes = [];
  for (const module of [...modules].sort((a, b) => a[1] - b[1])) {
    let lane = lanes.find(l => l.end <= module[1] + 1e-3);
    if (!lane) lanes.push(lane = { end: 0, modules: [] });
    lane.modules.push(module);
    lane.end = module[1] + module[2];
  }
  return lanes.slice(0, 64);
};

klto.drawLanes = function (svg, lanes, x, top, height, left) {
  if (!lanes.length) return;
  const group = svg.append("g").attr("class", "backends");
  group.append("text").attr("x", left - 6).attr("y", top + 12).attr("text-anchor", "end").text("backends");
  lanes.forEach((lane, row) => {
    group.append("g").selectAll("rect").data(lane.modules).join("rect").attr("class", "bar")
      .attr("x", m => x(m[1])).attr("y", top + row * height).attr("height", height - 1)
      .attr("width", m => Math.max(0.5, x(m[1] + m[2]) - x(m[1]) - 0.3))
      .attr("fill", (_, i) => (i % 2 ? "var(--bar)" : "var(--bar2)"))
      .append("title").text(m => `${m[0]}: ${klto.duration(m[2])}`);
  });
};

klto.drawMemory = function (svg, memory, x, top, height, left) {
  const y = d3.scaleLinear([0, d3.max(memory, m => m[1])], [top + height, top + 14]);
  const points = memory.map(m => `${x(m[0]).toFixed(1)},${y(m[1]).toFixed(1)}`);
  svg.append("path").attr("class", "bar").attr("fill", "var(--area)").attr("stroke", "var(--bar)")
    .attr("d", `M${x(memory[0][0])},${top + height}L${points.join("L")}L${x(memory[memory.length - 1][0])},${top + height}Z`);
  svg.append("g").attr("class", "axis").attr("transform", `translate(${left},0)`)
    .call(d3.axisLeft(y).tickValues([0, y.domain()[1] / 2, y.domain()[1]]).tickFormat(klto.size));
  svg.append("text").attr("x", left + 4).attr("y", top + 8).text("memory of the largest process");
};

klto.stageTables = function () {
  const { stages, modules } = klto.data;
  klto.table("stage-table", "Stages", [
    { title: "Stage" }, { title: "Began", show: klto.duration }, { title: "Took", show: klto.duration },
    { title: "CPU", show: klto.duration }, { title: "Peak memory", show: klto.size },
    { title: "of", words: true }, { title: "Status", words: true },
  ], stages);
  if (!modules.length) {
    document.getElementById("backends").append(
      klto.element("p", { class: "note" }, "Seconds of each backend: not measured in this run."));
    return;
  }
  klto.table("backends", "Backends, slowest first", [
    { title: "Module" }, { title: "Took", show: klto.duration }, { title: "Bitcode", show: klto.size },
    { title: "Object", show: klto.size }, { title: "From cache", show: v => (v ? "yes" : "no") },
  ], modules.map(m => [m[0], m[2], m[3], m[4], m[5]]), { most: 12, filter: true });
};
