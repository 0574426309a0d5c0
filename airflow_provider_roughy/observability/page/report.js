(() => {
  "use strict";
  const table = document.getElementById("results");
  if (!table) return;
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const filter = document.getElementById("filter"), outcome = document.getElementById("outcome");
  const sort = document.getElementById("sort"), shown = document.getElementById("shown");
  const all = document.getElementById("all");
  const collator = new Intl.Collator(undefined, { numeric: true });
  const place = new Map(rows.map((row, index) => [row, index]));
  const outcomes = rows.map((row) => row.cells[1].textContent);
  const texts = [];
  // A browser lays out so many at once without a pause.
  const few = 500;
  let sorted = rows, limit = few;

  function value(row, column) {
    const text = row.cells[column].textContent;
    if (column === 1) return outcomes.indexOf(text);
    if (!heads[column].classList.contains("n")) return text;
    return text === "" ? -1 : parseFloat(text.replaceAll(",", ""));
  }

  function order(column, direction) {
    heads.forEach((head, index) => {
      if (index === column) head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    const values = column === null ? place : new Map(rows.map((row) => [row, value(row, column)]));
    sorted = [...rows].sort((a, b) => {
      const left = values.get(a), right = values.get(b);
      const found = typeof left === "number" ? left - right : collator.compare(left, right);
      return direction * found || place.get(a) - place.get(b);
    });
    show();
    body.replaceChildren(...sorted);
  }

  function show() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let number = 0;
    for (const row of sorted) {
      const index = place.get(row);
      texts[index] ??= row.textContent.toLowerCase();
      const matches = (!outcome.value || outcomes[index] === outcome.value)
        && words.every((word) => texts[index].includes(word));
      number += matches;
      row.hidden = !matches || number > limit;
    }
    const count = (many) => many.toLocaleString("en");
    all.hidden = number <= limit;
    shown.textContent = `${count(number)} of ${count(rows.length)}`
      + (number > limit ? `, the first ${count(limit)} shown` : "");
  }

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      sort.value = `${column} ${direction}`;
      order(column, direction);
    });
    for (const [direction, how] of [[1, ""], [-1, ", reversed"]]) {
      sort.add(new Option(button.textContent.toLowerCase() + how, `${column} ${direction}`));
    }
  });
  sort.addEventListener("change", () => {
    const [column, direction] = sort.value ? sort.value.split(" ").map(Number) : [null, 1];
    order(column, direction);
  });
  const form = document.getElementById("controls");
  form.addEventListener("submit", (event) => event.preventDefault());
  all.addEventListener("click", () => { limit = Infinity; show(); filter.focus(); });
  let timer;
  filter.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(show, 120); });
  outcome.addEventListener("change", show);
  form.reset();
  show();
  form.hidden = false;
})();
