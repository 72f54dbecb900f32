// Sizes by directory, object and symbol; one level at a time.
"use strict";

klto.tree = {
  path: [],
  kind: "all",

  // {name, children: Map, sizes: [text, data, bss]} from paths.
  build() {
    const node = name => ({ name, children: new Map(), sizes: [0, 0, 0] });
    const root = node("vmlinux"), leaves = new Map();
    for (const [path, ...sizes] of klto.data.objects) {
      let at = root;
      for (const part of path.split("/")) {
        sizes.forEach((value, i) => { at.sizes[i] += value; });
        if (!at.children.has(part)) at.children.set(part, node(part));
        at = at.children.get(part);
      }
      sizes.forEach((value, i) => { at.sizes[i] += value; });
      leaves.set(path, at);
    }
    const kinds = { text: 0, data: 1, bss: 2 };
    for (const [path, name, size, kind] of klto.data.symbols) {
      const owner = leaves.get(path);
      if (!owner) continue;
      const key = `${name} `;  // A symbol may be called as a file is.
      if (!owner.children.has(key)) owner.children.set(key, node(name));
      owner.children.get(key).sizes[kinds[kind]] += size;
    }
    for (const owner of leaves.values()) {
      if (!owner.children.size) continue;
      const rest = owner.sizes.map((all, i) => all - [...owner.children.values()].reduce((sum, c) => sum + c.sizes[i], 0));
      if (rest.some(value => value > 0)) owner.children.set("(smaller symbols)", { name: "(smaller symbols)", children: new Map(), sizes: rest });
    }
    this.root = root;
  },

  size(node) {
    const [text, data, bss] = node.sizes;
    return { all: text + data + bss, text, data, bss }[this.kind];
  },

  here() {
    return this.path.reduce((at, name) => at.children.get(name), this.root);
  },

  go(path, focus) {
    this.path = path;
    this.draw();
    if (focus) document.querySelector("#treemap .cell")?.focus();
  },

  draw() {
    const host = document.getElementById("treemap"), here = this.here();
    const width = host.clientWidth || 800, height = Math.round(Math.min(460, Math.max(300, width * 0.5)));
    host.replaceChildren();
    const children = [...here.children.entries()].filter(([, c]) => this.size(c) > 0);
    const hierarchy = d3.hierarchy({ children: children.map(([key, node]) => ({ key, node })) })
      .sum(d => (d.node ? this.size(d.node) : 0)).sort((a, b) => b.value - a.value);
    d3.treemap().size([width, height]).paddingInner(1).round(true)(hierarchy);
    const svg = d3.select(host).append("svg").attr("viewBox", `0 0 ${width} ${height}`)
      .attr("role", "group").attr("aria-label", `${here.name}: ${klto.size(this.size(here))}`);
    const tiles = (hierarchy.children || []).filter(d => d.x1 - d.x0 > 1.5 && d.y1 - d.y0 > 1.5);
    const cells = svg.selectAll("g").data(tiles).join("g").attr("class", d => (d.data.node.children.size ? "cell into" : "cell"))
      .attr("transform", d => `translate(${d.x0},${d.y0})`);
    cells.append("rect").attr("width", d => d.x1 - d.x0).attr("height", d => d.y1 - d.y0).attr("fill", (_, i) => `var(--c${i % 10})`);
    cells.append("title").text(d => `${d.data.node.name}: ${klto.size(d.value)}, ${this.share(d.value, here)}`);
    const room = cells.filter(d => d.x1 - d.x0 > 44 && d.y1 - d.y0 > 18);
    room.append("text").attr("x", 5).attr("y", 14).text(d => this.fit(d.data.node.name, d.x1 - d.x0 - 8));
    room.filter(d => d.y1 - d.y0 > 36 && d.x1 - d.x0 > 62).append("text").attr("class", "size").attr("x", 5).attr("y", 30)
      .text(d => klto.size(d.value));
    const into = cells.filter(d => d.data.node.children.size);
    into.attr("tabindex", 0).attr("role", "button")
      .attr("aria-label", d => `${d.data.node.name}, ${klto.size(d.value)}, ${this.share(d.value, here)}. Open`);
    into.on("click", (_, d) => this.go([...this.path, d.data.key], false));
    into.on("keydown", (event, d) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        this.go([...this.path, d.data.key], true);
      }
    });
    this.crumbs();
    const rows = children.map(([, c]) => [c.name, this.size(c), ...c.sizes]).sort((a, b) => b[1] - a[1]);
    klto.table("tree-table", `In ${[this.root.name, ...this.path.map(p => p.trim())].join("/")}`, [
      { title: "Name" }, { title: "Size", show: klto.size }, { title: "text", show: klto.size },
      { title: "data", show: klto.size }, { title: "bss", show: klto.size },
    ], rows, { most: 8 });
  },

  share(value, here) {
    const all = this.size(here);
    return all ? `${(100 * value / all).toFixed(1)} %` : "";
  },

  fit(name, width) {
    const most = Math.floor(width / 7);
    return name.length <= most ? name : most < 4 ? "" : `${name.slice(0, most - 1)}…`;
  },

  crumbs() {
    const host = document.getElementById("crumbs");
    host.replaceChildren();
    ["vmlinux", ...this.path].forEach((name, index) => {
      if (index) host.append(klto.element("span", { "aria-hidden": "true" }, "/"));
      const button = klto.element("button", { type: "button" }, name.trim());
      if (index === this.path.length) button.setAttribute("aria-current", "true");
      button.addEventListener("click", () => this.go(this.path.slice(0, index), false));
      host.append(button);
    });
  },

  start() {
    if (!klto.data.objects.length) return;
    this.build();
    document.getElementById("kind").addEventListener("change", event => { this.kind = event.target.value; this.draw(); });
    document.getElementById("size").addEventListener("keydown", event => {
      if (event.key === "Escape" && this.path.length) this.go(this.path.slice(0, -1), true);
    });
    this.draw();
  },
};
