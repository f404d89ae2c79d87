"use strict";
// The tables of episodes: sorted, filtered, and drawn a screenful at a time from the JSON beside each of them.
(() => {
  const SCREENFUL = 100;
  const RESULTS = ["failure", "success", "broken"];
  const COLUMNS = [
    ["policy", "text"], ["task", "text"], ["trial", "number"], ["seed", "number"], ["result", "text"],
    ["steps", "number"], ["calls", "number"], ["mean ms", "number"], ["wall s", "number"], ["film", "text"], ["error", "text"],
  ];

  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };

  const read = (source) => {
    const { strings, columns } = JSON.parse(document.getElementById(source).textContent);
    const text = (index) => (index < 0 ? "" : strings[index]);
    return columns.policy.map((_, n) => ({
      cells: [
        text(columns.policy[n]), text(columns.task[n]), columns.trial[n], columns.seed[n], RESULTS[columns.result[n]],
        columns.steps[n], columns.calls[n], columns.ms[n], columns.wall[n], text(columns.film[n]), text(columns.error[n]),
      ],
      differs: Boolean(columns.differs[n]),
    }));
  };

  const cell = (value, column) => {
    const [name, kind] = COLUMNS[column];
    if (name === "film") return make("td", { class: "text" }, value ? make("a", { href: value }, "film") : "");
    const shown = name === "mean ms" || name === "wall s" ? value.toFixed(1) : String(value);
    const classes = [kind, name === "result" ? value : name].join(" ");
    const node = make("td", { class: classes }, shown);
    if (name === "task" || name === "error") node.title = shown;
    return node;
  };

  const selection = (label, values) => {
    const node = make("select", { "aria-label": label }, make("option", { value: "" }, label));
    for (const value of values) node.append(make("option", { value }, value));
    return node;
  };

  const build = (host) => {
    const all = read(host.dataset.source);
    const used = COLUMNS.map((_, n) => n).filter((n) => n < 9 || all.some((row) => row.cells[n]));
    const policies = [...new Set(all.map((row) => row.cells[0]))];
    const search = make("input", { type: "search", placeholder: "task, policy or error", "aria-label": "Search episodes" });
    const policy = selection("all policies", policies);
    const result = selection("all results", RESULTS.filter((name) => all.some((row) => row.cells[4] === name)));
    const differs = make("input", { type: "checkbox" });
    const count = make("output");
    const body = make("tbody");
    const end = make("div", { "aria-hidden": "true" });
    const head = make("tr");
    const rows = make("div", { class: "rows", tabindex: "0", role: "region", "aria-label": "Episodes" },
      make("table", {}, make("thead", {}, head), body), end);
    let sort = { column: -1, down: false };
    let shown = all;

    const more = () => {
      const from = body.childElementCount;
      for (const row of shown.slice(from, from + SCREENFUL)) {
        body.append(make("tr", {}, ...used.map((n) => cell(row.cells[n], n))));
      }
    };
    const update = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const text = (row) => [row.cells[0], row.cells[1], row.cells[10]].join(" ").toLowerCase();
      shown = all.filter((row) =>
        (!policy.value || row.cells[0] === policy.value) && (!result.value || row.cells[4] === result.value) &&
        (!differs.checked || row.differs) && words.every((word) => text(row).includes(word)));
      if (sort.column >= 0) {
        const sign = sort.down ? -1 : 1;
        const order = COLUMNS[sort.column][1] === "number" ? (a, b) => a - b : (a, b) => (a < b ? -1 : a > b ? 1 : 0);
        shown = shown.slice().sort((a, b) => sign * order(a.cells[sort.column], b.cells[sort.column]));
      }
      [...head.children].forEach((th, place) =>
        th.setAttribute("aria-sort", used[place] !== sort.column ? "none" : sort.down ? "descending" : "ascending"));
      count.value = `${shown.length.toLocaleString("en")} of ${all.length.toLocaleString("en")} episodes`;
      body.replaceChildren();
      rows.scrollTop = 0;
      more();
    };

    used.forEach((n) => {
      const [name, kind] = COLUMNS[n];
      const button = make("button", { type: "button" }, name);
      button.addEventListener("click", () => {
        sort = { column: n, down: sort.column === n && !sort.down };
        update();
      });
      head.append(make("th", { class: kind, scope: "col" }, button));
    });
    [search, policy, result, differs].forEach((control) => control.addEventListener("input", update));
    new IntersectionObserver((seen) => seen.some((entry) => entry.isIntersecting) && more(), { root: rows, rootMargin: "600px" })
      .observe(end);
    const controls = make("div", { class: "controls" }, search, ...(policies.length > 1 ? [policy] : []), result);
    if (all.some((row) => row.differs)) controls.append(make("label", {}, differs, "policies differ"));
    controls.append(count);
    host.append(controls, rows);
    update();
  };

  document.querySelectorAll(".episodes").forEach(build);
})();
