// Draws everything, once and again when the width changes.
"use strict";

klto.directory = path => {
  const parts = path.split("/");
  return parts.length > 1 ? parts.slice(0, Math.min(2, parts.length - 1)).join("/") : "(top)";
};

klto.imports = function () {
  const edges = klto.data.imports;
  if (!edges.length) return;
  const functions = edges.reduce((sum, e) => sum + e[2], 0);
  const importers = new Set(edges.map(e => e[0])).size, sources = new Set(edges.map(e => e[1])).size;
  document.getElementById("import-sum").textContent =
    `${functions} functions imported, by ${importers} modules from ${sources} others.`;
  klto.importMatrix(edges);
  klto.table("import-table", "Heaviest imports", [
    { title: "Importer" }, { title: "From", words: true }, { title: "Functions" }, { title: "Instructions" },
  ], edges, { most: 12, filter: true });
};

klto.importMatrix = function (edges) {
  const cells = new Map(), weight = new Map();
  for (const [to, from, count] of edges) {
    const a = klto.directory(to), b = klto.directory(from);
    const key = `${a}\n${b}`;
    cells.set(key, (cells.get(key) || 0) + count);
    for (const name of new Set([a, b])) weight.set(name, (weight.get(name) || 0) + count);
  }
  const names = [...weight].sort((a, b) => b[1] - a[1]).slice(0, innerWidth < 520 ? 6 : 12).map(([name]) => name);
  const largest = d3.max([...cells.values()]);
  const head = klto.element("tr", {}, klto.element("th", { scope: "col" }, "into \\ from"),
    ...names.map(name => klto.element("th", { scope: "col" }, name)));
  const rows = names.map(to => klto.element("tr", {}, klto.element("th", { scope: "row" }, to), ...names.map(from => {
    const count = cells.get(`${to}\n${from}`) || 0;
    const cell = klto.element("td", {}, count ? String(count) : "");
    if (count) cell.style.background = `rgba(var(--heat), ${(0.12 + 0.33 * Math.sqrt(count / largest)).toFixed(2)})`;
    return cell;
  })));
  const caption = "Functions imported, directory by directory";
  document.getElementById("import-matrix").replaceChildren(klto.element("div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    klto.element("table", { class: "matrix" }, klto.element("caption", {}, caption),
      klto.element("thead", {}, head), klto.element("tbody", {}, ...rows))));
};

klto.initcalls = function () {
  const rows = klto.data.initcalls.map((row, index) => [index + 1, row[0], row[1], row[2], row[3]]);
  if (!rows.length) return;
  klto.table("initcall-table", "Initcalls in order", [
    { title: "No.", narrow: true }, { title: "Level", words: true, narrow: true }, { title: "Function", words: true },
    { title: "Object", words: true }, { title: "Took", show: v => (v === null ? "-" : `${v} µs`) },
  ], rows, { most: 15, filter: true });
};

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

klto.timeline();
klto.stageTables();
klto.tree.start();
klto.imports();
klto.initcalls();

// The charts are drawn for the width that there is.
klto.width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === klto.width) return;
  klto.width = innerWidth;
  requestAnimationFrame(() => {
    klto.timeline();
    if (klto.tree.root) klto.tree.draw();
  });
});
addEventListener("beforeprint", () => { for (const item of document.querySelectorAll("details")) item.open = true; });
document.documentElement.dataset.ready = "yes";
