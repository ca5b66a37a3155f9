"use strict";
(() => {
  const tools = document.querySelector(".tools");
  const filter = document.getElementById("filter");
  const onlyOk = document.getElementById("only-ok");
  const shown = document.getElementById("shown");
  const noun = tools.dataset.noun;
  const rows = [...document.querySelectorAll("table.cases > tbody > tr")];

  // A number where the cell has one, else its text; what is missing comes last in either direction.
  const keyOf = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.value !== undefined) return { number: Number(cell.dataset.value) };
    const text = cell.textContent.trim();
    return text === "-" || text === "" ? null : { text };
  };
  const compare = (a, b) => {
    if (a.number !== undefined && b.number !== undefined) return a.number - b.number;
    if (a.number !== undefined) return -1;
    if (b.number !== undefined) return 1;
    return a.text.localeCompare(b.text, undefined, { numeric: true });
  };

  for (const head of document.querySelectorAll("thead th")) {
    head.setAttribute("aria-sort", "none");
    head.querySelector("button").addEventListener("click", () => {
      const table = head.closest("table");
      const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      for (const other of head.parentNode.cells) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", direction);
      const sign = direction === "ascending" ? 1 : -1;
      const keyed = [...table.tBodies[0].rows].map((row) => [keyOf(row, head.cellIndex), row]);
      keyed.sort(([a], [b]) => (a && b ? sign * compare(a, b) : Number(a === null) - Number(b === null)));
      table.tBodies[0].append(...keyed.map(([, row]) => row));
    });
  }

  const apply = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const status = row.querySelector("[data-status]");
      const wanted = words.every((word) => text.includes(word)) && (!onlyOk.checked || status?.dataset.status === "ok");
      row.hidden = !wanted;
      count += wanted;
    }
    for (const table of document.querySelectorAll("table.cases")) {
      table.closest(".scroll").hidden = [...table.tBodies[0].rows].every((row) => row.hidden);
    }
    shown.value = words.length || onlyOk.checked ? `${count} of ${rows.length} ${noun}` : "";
  };

  if (rows.length > 1) {
    tools.hidden = false;
    onlyOk.closest("label").hidden = !document.querySelector("[data-status]");
    filter.addEventListener("input", apply);
    onlyOk.addEventListener("change", apply);
    tools.addEventListener("submit", (event) => event.preventDefault());
    tools.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { filter.value = ""; apply(); }
    });
  }

  // Paper cannot be unfolded.
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const one of opened) one.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const one of opened) one.open = false;
  });
})();
