// Two or three chosen runs side by side: whether they may be compared, what differs, every number that one of them has.

/** The names of what had to agree, and does not. */
function unlikeTerms(chosen) {
  const terms = chosen.map((row) => groups[rows.group[row]].terms);
  return Object.keys(terms[0]).filter((name) => terms.some((each) => each[name] !== terms[0][name]));
}

/** What a reader must know before comparing: the reason not to, or what is still unlike. */
function comparability(chosen) {
  const unlike = unlikeTerms(chosen);
  if (unlike.length) {
    return [true, `Not comparable: they differ in ${unlike.join(", ")}. Their numbers stand here unranked.`];
  }
  const apart = chosen.filter(isApart).map((row) => `${text("label", row)} (${text("apart", row)})`);
  if (apart.length) return [true, `Not ranked: ${apart.join("; ")}.`];
  const ids = chosen.slice(0, 2).map((row) => rows.id[row]);
  const software = new Set(chosen.map((row) => text("software", row))).size > 1;
  return [
    software,
    "Comparable: same model, documents, settings and machine. " +
      (software ? "They were made with other software, which alone can change what was measured. " : "") +
      `The intervals are against dense; harness compare ${ids.join(" ")} tests two runs against each other.`,
  ];
}

/** Facts of a run, by title. */
function factsOf(row) {
  const group = groups[rows.group[row]];
  return {
    Model: [group.model, ...group.model_facts].join(", "),
    License: text("license", row),
    Weights: group.weights.replace(/([0-9a-f]{12})[0-9a-f]{20,}/, "$1…"),
    Task: `${group.task}, ${group.documents} documents`,
    Settings: text("settings", row),
    Machine: [text("hardware", row), ...group.machine_facts].join("; "),
    Software: text("software", row),
    Run: text("started", row),
    Output: text("output", row),
    Saving: text("saving", row),
    "To be known": [...notesOf(row), isApart(row) ? `apart: ${text("apart", row)}` : ""].filter(Boolean).join("; "),
  };
}

/** The run that is surely better than all others in a column; null where none is, or where it may not be said. */
function surelyBest(key, chosen) {
  if (!chosen.every((row) => number(key, row) !== null && isRanked(key, row))) return null;
  const goodnessOf = (row) => number(key, row) * sense(key, row);
  const best = chosen.toSorted((a, b) => goodnessOf(b) - goodnessOf(a))[0];
  return chosen.every((row) => row === best || differAt(key, best, row)) ? best : null;
}

function comparedHead(chosen) {
  const heads = chosen.map((row) => {
    const name = text("label", row);
    const away = make("button", { type: "button", class: "plain", "data-away": rows.id[row] }, "Remove");
    away.setAttribute("aria-label", `Remove ${name}`);
    const link = make("a", { href: `runs/${rows.id[row]}.html` }, name);
    return make("th", { scope: "col", role: "columnheader" }, symbol(text("family", row), "shape"), link, away);
  });
  return make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, make("td", { role: "cell" }), ...heads));
}

/** The facts: in one cell what is the same for all. */
function factLines(chosen) {
  const facts = chosen.map(factsOf);
  return Object.keys(facts[0])
    .filter((name) => facts.some((each) => each[name]))
    .map((name) => {
      const differs = facts.some((each) => each[name] !== facts[0][name]);
      const head = make(
        "th",
        { scope: "row", role: "rowheader" },
        name,
        differs ? tag("", "not the same for all", "differs") : null,
      );
      const cells = differs
        ? facts.map((each) => make("td", { role: "cell" }, each[name] || "–"))
        : [make("td", { role: "cell", colspan: facts.length, class: "same" }, facts[0][name])];
      return make("tr", { role: "row" }, head, ...cells);
    });
}

function numberLines(chosen, mayBeRanked) {
  const known = board.columns.filter(({ key }) => chosen.some((row) => number(key, row) !== null));
  return known
    .filter(({ form }) => form !== "value")
    .map(({ key, title, unit, kind, basis }) => {
      const best = mayBeRanked ? surelyBest(key, chosen) : null;
      const small = make("small", { class: "interval" }, [unit, kind, basis].filter(Boolean).join(" · "));
      const cells = chosen.map((row) => numberCell(key, row, row === best));
      return make("tr", { role: "row" }, make("th", { scope: "row", role: "rowheader" }, title, small), ...cells);
    });
}

/** A number with its interval, what is said of it and, of a ratio, the cost itself. */
function numberCell(key, row, isBest) {
  const column = columns.get(key);
  const [value, note, cost] = [number(key, row), noteOf(key, row), columns.get(`${key}_value`)];
  const absolute = cost ? written(number(cost.key, row), cost) : "";
  if (value === null) {
    const isReference = rows.dense[row] && column.form === "difference";
    const words = [absolute, isReference ? "reference" : note].filter(Boolean).join("; ");
    return make("td", { role: "cell" }, make("span", { class: "muted small" }, words));
  }
  const details = [[writtenInterval(intervalOf(key, row), column), absolute].filter(Boolean).join(" · "), note];
  return make(
    "td",
    { role: "cell" },
    make("span", { class: isRanked(key, row) ? null : "unranked" }, written(value, column)),
    isBest ? tag("front", "surely better than the others", "best") : null,
    ...details.filter(Boolean).map((each) => make("span", { class: "interval" }, each)),
  );
}

/** The comparison, the bar that leads to it, and the boxes of the rows. */
function drawCompared() {
  const chosen = view.compare;
  const isFull = chosen.length === MOST_COMPARED;
  for (const box of document.querySelectorAll("[data-compare]")) {
    box.checked = chosen.some((row) => rows.id[row] === box.dataset.compare);
    box.disabled = isFull && !box.checked;
  }
  find("chosen").hidden = !chosen.length;
  find("chosen-text").textContent =
    chosen.length > 1 ? `${chosen.length} runs chosen` : "1 run chosen: choose one or two more";
  find("see").hidden = chosen.length < 2;
  find("gone").hidden = !view.gone;
  find("gone").textContent = `${view.gone} of the runs to compare ${view.gone > 1 ? "are" : "is"} not on this board.`;
  find("compared").hidden = chosen.length < 2;
  if (chosen.length < 2) return;
  const [isDoubtful, words] = comparability(chosen);
  find("comparability").className = isDoubtful ? "notice" : "muted";
  find("comparability").textContent = words;
  const mayBeRanked = !unlikeTerms(chosen).length && !chosen.some(isApart);
  const body = make("tbody", { role: "rowgroup" }, ...factLines(chosen), ...numberLines(chosen, mayBeRanked));
  const table = find("compared-table");
  table.style.setProperty("--runs", chosen.length);
  table.replaceChildren(table.caption, comparedHead(chosen), body);
}

/** Choose a run, or take it away again. */
function choose(id, isChosen) {
  const row = rowById.get(id);
  const others = view.compare.filter((each) => each !== row);
  view.compare = isChosen ? [...others, row].slice(0, MOST_COMPARED) : others;
  view.gone = 0;
  drawCompared();
  writeAddress();
}

function listenToComparison() {
  const main = find("main");
  main.addEventListener("change", ({ target }) => {
    if (target.dataset.compare) choose(target.dataset.compare, target.checked);
  });
  main.addEventListener("click", ({ target }) => {
    const id = target.closest("[data-away]")?.dataset.away;
    if (!id) return;
    choose(id, false);
    find(view.compare.length > 1 ? "compared-title" : "search").focus();
  });
  // the bar would lie over the comparison that it leads to
  new IntersectionObserver(([{ isIntersecting }]) =>
    find("chosen").classList.toggle("arrived", isIntersecting),
  ).observe(find("compared"));
  find("see").addEventListener("click", () => {
    find("compared").scrollIntoView();
    find("compared-title").focus({ preventScroll: true });
  });
  find("forget").addEventListener("click", () => {
    Object.assign(view, { compare: [], gone: 0 });
    drawCompared();
    writeAddress();
    find("search").focus({ preventScroll: true });
  });
}
