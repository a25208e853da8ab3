// The board: draws the view, and draws it again whenever the reader changes it.

function draw() {
  const shown = shownRows();
  drawTables(shown);
  find("empty").hidden = shown.length > 0;
  find("mixed").hidden = view.list !== "one";
  updateControls(shown);
  drawChart(shown);
  drawSuites(shown);
  drawCompared();
  writeAddress();
}

/** Change the view and draw it. */
function change(settings) {
  Object.assign(view, settings);
  draw();
}

function sortBy(key) {
  const first = firstSort(key);
  const reversed = isFalling(first) ? key : `-${key}`;
  view.sort = view.sort === first ? reversed : first;
  drawTables(shownRows()); // the chart stays as it is
  writeAddress();
  find("sort").value = view.sort;
  document.querySelector(`[data-sort="${key}"]`)?.focus({ preventScroll: true });
}

function clearFilters() {
  for (const name of facetNames) view[name].clear();
  change({ q: "" });
  find("search").focus();
}

function listenToControls() {
  const onChange = (id, settings) => find(id).addEventListener("change", (event) => change(settings(event.target)));
  find("search").addEventListener("input", (event) => change({ q: event.target.value, rows: PAGE }));
  onChange("sort", ({ value }) => ({ sort: value }));
  onChange("axis-x", ({ value }) => {
    const isSameScale = [value, view.x].every((key) => columns.get(key).form === "ratio");
    return { x: value, budget: isSameScale ? view.budget : null };
  });
  find("budget").addEventListener("input", (event) => {
    view.budget = budgetOf(event.target);
    const shown = shownRows();
    drawTables(shown);
    drawChart(shown);
    writeAddress();
  });
  onChange("axis-y", ({ value }) => ({ y: value }));
  onChange("chart-group", ({ value }) => ({ chart: value }));
  onChange("one", ({ checked }) => ({ list: checked ? "one" : START.list }));
  find("clear").addEventListener("click", clearFilters);
  find("next").addEventListener("click", () => change({ rows: view.rows + PAGE }));
  find("all").addEventListener("click", () => change({ rows: ALL.length }));
  find("csv").addEventListener("click", () => save("harness.csv", "text/csv", asCsv(asRecords(shownRows()))));
  find("json").addEventListener("click", () =>
    save("harness.json", "application/json", JSON.stringify(asRecords(shownRows()), null, 1)),
  );
  for (const table of [find("board"), find("apart-board")]) {
    table.addEventListener("click", (event) => {
      const key = event.target.closest("[data-sort]")?.dataset.sort;
      if (key) sortBy(key);
    });
  }
  find("plot").addEventListener("keydown", walkPoints);
}

/** A click elsewhere and Escape close an open menu. */
function listenToMenus() {
  const openMenus = () => document.querySelectorAll("details.menu[open]");
  document.addEventListener("click", (event) => {
    for (const menu of openMenus()) if (!menu.contains(event.target)) menu.open = false;
  });
  document.addEventListener("keydown", (event) => {
    const [menu] = openMenus();
    if (event.key !== "Escape" || !menu) return;
    menu.open = false;
    menu.querySelector("summary").focus();
  });
}

function listenToWindow() {
  addEventListener("popstate", () => change(readAddress()));
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return; // a phone's bars come and go in height alone
    width = innerWidth;
    drawChart(shownRows());
  });
}

buildControls();
listenToControls();
listenToComparison();
listenToMenus();
listenToWindow();
draw();
document.documentElement.dataset.drawn = "yes";
