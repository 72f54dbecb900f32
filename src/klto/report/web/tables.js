// Tables that sort and filter, and numbers for people (as klto/units.py writes them).
"use strict";

const klto = { data: JSON.parse(document.getElementById("data").textContent) };

klto.size = function (bytes) {
  if (bytes === null || bytes === undefined) return "-";
  let value = bytes, unit = "B";
  for (unit of ["B", "KiB", "MiB", "GiB", "TiB"]) {
    if (Math.abs(value) < 1024 || unit === "TiB") break;
    value /= 1024;
  }
  return `${Math.abs(value) < 10 && unit !== "B" ? value.toFixed(1) : value.toFixed(0)} ${unit}`;
};

klto.duration = function (seconds) {
  if (seconds === null || seconds === undefined) return "-";
  if (seconds < 10) return seconds < 0.1 && seconds > 0 ? `${(seconds * 1000).toFixed(0)} ms` : `${seconds.toFixed(1)} s`;
  const all = Math.round(seconds), h = Math.floor(all / 3600), m = Math.floor(all / 60) % 60;
  const s = String(all % 60).padStart(2, "0");
  return h ? `${h}:${String(m).padStart(2, "0")}:${s}` : `${m}:${s}`;
};

klto.element = function (name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  made.append(...children);
  return made;
};

// A table below `place`. columns: {title, show(value), words, narrow}; rows: arrays. More than `most` rows come on demand.
klto.table = function (place, caption, columns, rows, options) {
  const { most = 50, filter = false } = options || {};
  const host = document.getElementById(place);
  if (!host) return;
  host.replaceChildren();
  let shown = most, wanted = "", order = null, down = true;
  const body = klto.element("tbody");
  const head = klto.element("tr");
  const more = klto.element("button", { type: "button", class: "noprint" });
  const count = klto.element("p", { class: "note", role: "status" });
  columns.forEach((column, index) => {
    const button = klto.element("button", { type: "button" }, column.title);
    const cell = klto.element("th", { scope: "col" }, button);
    if (column.words) cell.className = "words";
    if (column.narrow) cell.classList.add("narrow");
    button.addEventListener("click", () => {
      down = order === index ? !down : !column.words && index > 0;
      order = index;
      for (const other of head.children) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      fill();
    });
    head.append(cell);
  });
  function fill() {
    let found = wanted ? rows.filter(row => row.some(value => String(value).toLowerCase().includes(wanted))) : rows;
    if (order !== null) {
      const rank = (a, b) => (typeof a === "string" || typeof b === "string"
        ? String(a ?? "").localeCompare(String(b ?? "")) : (a ?? -1) - (b ?? -1));
      found = [...found].sort((a, b) => rank(a[order], b[order]) * (down ? -1 : 1));
    }
    body.replaceChildren(...found.slice(0, shown).map(row => {
      const line = klto.element("tr");
      columns.forEach((column, index) => {
        const text = column.show ? column.show(row[index], row) : String(row[index] ?? "-");
        const cell = index ? klto.element("td", {}, text) : klto.element("th", { scope: "row" }, text);
        if (column.words && index) cell.className = "words";
        if (column.narrow) cell.classList.add("narrow");
        line.append(cell);
      });
      return line;
    }));
    const left = found.length - shown;
    more.hidden = left <= 0;
    more.textContent = `Show ${left} more`;
    count.textContent = wanted ? `${found.length} of ${rows.length} rows` : "";
  }
  more.addEventListener("click", () => { shown = Infinity; fill(); });
  if (filter && rows.length > 15) {
    const input = klto.element("input", { type: "search" });
    input.addEventListener("input", () => { wanted = input.value.toLowerCase(); fill(); });
    host.append(klto.element("label", { class: "noprint" }, `Filter ${caption.toLowerCase()} `, input));
  }
  const table = klto.element("table", {}, klto.element("caption", {}, caption), klto.element("thead", {}, head), body);
  const tall = rows.length > 15 ? " tall" : "";
  host.append(klto.element("div", { class: `scroll${tall}`, tabindex: "0", role: "region", "aria-label": caption }, table), count, more);
  fill();
};
