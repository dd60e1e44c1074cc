"use strict";
// Enhances a page that can be read without it: sorting, filtering and paging of tensors, and a line that
// tells the numbers of a cell of the heat map. Nothing is ever made from text as markup.

const PAGE_ROWS = 100;

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function makeName(tag, name, className) {
  const element = make(tag, "", className);
  name.split(/(?<=[./_])/).forEach((word) => element.append(word, make("wbr")));
  return element;
}

// --- tensors ------------------------------------------------------------------------------------------

function textsOf(column) {
  if (column.texts) return column.texts;
  if (column.pool) return column.at.map((index) => column.pool[index]);
  return column.at.map(([index, ...numbers]) => {
    const parts = column.parts[index];
    let name = parts[0];
    for (let i = 0; i < numbers.length; i++) name += numbers[i] + parts[i + 1];
    return name;
  });
}

function startTable(table, data) {
  const columns = data.columns.map((column) => ({ ...column, texts: textsOf(column) }));
  const shown = columns.filter((column) => !column.detail);
  const details = columns.filter((column) => column.detail);
  const count = shown[0].texts.length;
  const words = shown.filter((column) => !column.keys);
  const haystack = Array.from({ length: count }, (_, row) =>
    words.map((column) => column.texts[row]).join("\n").toLowerCase());
  const natural = Uint32Array.from({ length: count }, (_, row) => row);
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const [form, input, told, range, earlier, later, pages] = [
    "filter", "words", "count", "range", "earlier", "later", "pages",
  ].map((name) => document.getElementById("tensor-" + name));
  let order = natural;
  let rows = natural;
  let first = 0;

  function compare(column, sign) {
    const { keys, texts } = column;
    if (keys) return (a, b) => sign * (keys[a] - keys[b]) || a - b;
    const collator = new Intl.Collator("en", { numeric: true });
    return (a, b) => sign * collator.compare(texts[a], texts[b]) || a - b;
  }

  function sort(at) {
    const column = shown[at];
    const before = heads[at].getAttribute("aria-sort");
    const [start, other] = column.keys ? ["descending", "ascending"] : ["ascending", "descending"];
    const next = before === "none" ? start : before === start ? other : "none";
    heads.forEach((head) => head.setAttribute("aria-sort", "none"));
    heads[at].setAttribute("aria-sort", next);
    order = next === "none" ? natural : natural.slice().sort(compare(column, next === "ascending" ? 1 : -1));
    filter();
  }

  function filter() {
    const wanted = input.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    rows = wanted.length ? order.filter((row) => wanted.every((word) => haystack[row].includes(word))) : order;
    const all = count.toLocaleString("en");
    told.textContent = wanted.length ? `${rows.length.toLocaleString("en")} of ${all} tensors` : `${all} tensors`;
    first = 0;
    draw();
  }

  function detailsOf(row) {
    const list = make("dl");
    for (const column of details) {
      if (!column.texts[row]) continue;
      const pair = list.appendChild(make("div"));
      pair.append(make("dt", column.label), make("dd", column.texts[row]));
    }
    return list;
  }

  function rowOf(row) {
    const line = make("tr");
    shown.forEach((column, at) => {
      if (at) {
        const write = column.style === "text" ? makeName : make;
        line.append(write("td", column.texts[row], column.style));
        return;
      }
      const head = line.appendChild(make("th"));
      head.scope = "row";
      const fold = head.appendChild(make("details"));
      fold.append(makeName("summary", column.texts[row]), detailsOf(row));
    });
    return line;
  }

  function draw() {
    const last = Math.min(first + PAGE_ROWS, rows.length);
    body.replaceChildren(...Array.from(rows.subarray(first, last), rowOf));
    pages.hidden = rows.length <= PAGE_ROWS;
    earlier.disabled = first === 0;
    later.disabled = last === rows.length;
    range.textContent = `${(first + 1).toLocaleString("en")} to ${last.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
  }

  function turn(step) {
    first += step * PAGE_ROWS;
    draw();
    table.parentElement.scrollIntoView({ block: "start" });
  }

  heads.forEach((head, at) => {
    const button = make("button", head.textContent);
    button.type = "button";
    button.addEventListener("click", () => sort(at));
    head.replaceChildren(button);
    head.setAttribute("aria-sort", "none");
  });
  let waiting = 0;
  input.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(filter, 60);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  earlier.addEventListener("click", () => turn(-1));
  later.addEventListener("click", () => turn(1));
  form.hidden = false;
  filter();
}

// --- heat maps ----------------------------------------------------------------------------------------

const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

function startHeatMap(figure) {
  const table = figure.querySelector("table");
  const readout = figure.querySelector(".readout");
  const [head, ...lines] = [...table.rows].map((row) => [...row.cells]);
  let current = lines[0][1];

  function tell(cell) {
    const row = cell.parentElement.cells[0].textContent;
    readout.textContent = `layer ${head[cell.cellIndex].textContent}, ${row}: ${cell.textContent}`;
  }

  function focus(cell) {
    current.tabIndex = -1;
    current = cell;
    cell.tabIndex = 0;
    cell.focus();
  }

  table.addEventListener("pointerover", (event) => {
    const cell = event.target.closest("td");
    if (cell) tell(cell);
  });
  table.addEventListener("focusin", (event) => {
    const cell = event.target.closest("td");
    if (cell) tell(cell);
  });
  table.addEventListener("click", (event) => {
    const cell = event.target.closest("td");
    if (cell) focus(cell);
  });
  table.addEventListener("keydown", (event) => {
    const cell = event.target.closest("td");
    if (!cell || event.altKey || event.ctrlKey || event.metaKey) return;
    const row = cell.parentElement.rowIndex - 1;
    const [down, right] = STEPS[event.key] ?? [0, 0];
    let next = lines[row + down]?.[cell.cellIndex + right];
    if (event.key === "Home") next = lines[row][1];
    if (event.key === "End") next = lines[row].at(-1);
    if (!next || next === cell || next.tagName !== "TD") return;
    event.preventDefault();
    focus(next);
  });
  lines.forEach((cells) => cells.slice(1).forEach((cell) => (cell.tabIndex = -1)));
  current.tabIndex = 0;
  readout.hidden = false;
}

// --- printing -----------------------------------------------------------------------------------------

function startPrinting() {
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")].filter((fold) => !fold.closest(".tensors"));
    opened.forEach((fold) => (fold.open = true));
  });
  window.addEventListener("afterprint", () => opened.forEach((fold) => (fold.open = false)));
}

const data = document.getElementById("tensor-data");
if (data) startTable(document.getElementById("tensor-table"), JSON.parse(data.textContent));
document.querySelectorAll(".heat").forEach(startHeatMap);
startPrinting();
