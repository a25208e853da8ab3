// The controls over the table: filters with their counts, columns, axes, order.

function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, name]) => make("option", { value }, name)));
  select.value = chosen;
}

function menu(name, title, legendText, entries) {
  const sheet = make("div", { class: name === "cols" ? "sheet right" : "sheet" });
  sheet.append(make("fieldset", {}, make("legend", {}, legendText), ...entries));
  const attributes = { class: "menu", name: "menus", "data-menu": name };
  return make("details", attributes, make("summary", { class: "pick" }, title), sheet);
}

function checkbox(name, value, words, small, isChecked, change) {
  const box = make("input", { type: "checkbox", "data-name": name, value });
  box.checked = isChecked;
  box.addEventListener("change", () => change(box.checked));
  return make("label", {}, box, make("span", {}, words), make("small", {}, small));
}

function facetMenu(name) {
  const inData = facets[name].choices;
  const values = [...new Set([...inData, ...view[name]])]; // an address may ask for what nobody has
  const choose = (value, isChosen) => {
    if (isChosen) view[name].add(value);
    else view[name].delete(value);
    view.rows = PAGE;
    draw();
  };
  const entries = values.map((value) =>
    checkbox(name, value, value || "(none)", "", view[name].has(value), (isChosen) => choose(value, isChosen)),
  );
  const { title } = facets[name];
  const box = menu(name, title, `Show only ${title.toLowerCase()}`, entries);
  box.hidden = values.length < 2; // a single choice filters nothing
  return box;
}

function columnMenu() {
  const choose = (chosen, isChosen) => {
    const keys = board.columns.map((column) => column.key); // in the order of the data, whatever was chosen first
    view.cols = keys.filter((key) => (key === chosen ? isChosen : view.cols.includes(key)));
    draw();
  };
  const entries = board.columns.map(({ key, title, unit, kind, help }) => {
    const change = (isChosen) => choose(key, isChosen);
    const entry = checkbox("cols", key, title, `${unit}, ${kind}`, view.cols.includes(key), change);
    entry.title = help;
    return entry;
  });
  return menu("cols", "Columns", "Columns of the table", entries);
}

function sortOptions() {
  const named = [["label", "Method"], ...board.columns.map((column) => [column.key, column.title])];
  return named.flatMap(([key, name]) => {
    const isScore = firstSort(key) !== key;
    const up = [key, isScore ? `${name}, worst first` : `${name} ↑`];
    const down = [`-${key}`, isScore ? `${name}, best first` : `${name} ↓`];
    return isScore ? [down, up] : [up, down];
  });
}

function buildControls() {
  find("facets").append(...facetNames.map(facetMenu));
  find("columns").append(columnMenu());
  const known = board.columns.filter((column) => column.known);
  const option = ({ key, title, unit }) => [key, `${title}, ${unit}`];
  fill(find("axis-x"), known.filter(isCost).map(option), view.x);
  fill(find("axis-y"), known.map(option), view.y);
  fill(find("sort"), sortOptions(), view.sort);
}

/** How many rows each choice of a facet would show, beside the other filters. */
function countChoices(name) {
  const counts = new Map();
  for (const row of ALL) {
    const value = text(name, row);
    if (passes(row, name)) counts.set(value, (counts.get(value) ?? 0) + 1);
  }
  return counts;
}

function updateFacet(name) {
  const box = document.querySelector(`[data-menu="${name}"]`);
  const counts = countChoices(name);
  for (const input of box.querySelectorAll("input")) {
    input.checked = view[name].has(input.value);
    input.closest("label").querySelector("small").textContent = counts.get(input.value) ?? 0;
  }
  const chosen = view[name].size ? [make("b", {}, `${view[name].size}`)] : [];
  box.querySelector("summary").replaceChildren(facets[name].title, ...chosen);
}

function updateControls(shown) {
  find("search").value = view.q;
  for (const name of facetNames) updateFacet(name);
  for (const input of document.querySelectorAll('[data-name="cols"]')) input.checked = view.cols.includes(input.value);
  find("sort").value = view.sort;
  find("axis-x").value = view.x;
  find("axis-y").value = view.y;
  find("one").checked = view.list === "one";
  find("clear").hidden = !view.q && facetNames.every((name) => !view[name].size);
  const apart = shown.filter(isApart).length;
  find("status").textContent = `${shown.length} of ${ALL.length} runs${apart ? `, ${apart} of them apart` : ""}`;
}
