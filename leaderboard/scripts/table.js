// The tables: one of the rows that may be ranked, in groups, and one of those that stand apart.

const FULL_BAR = 1.25; // times dense, at a bar's full width
const percent = (share) => `${Math.max(0, Math.min(100, share * 100)).toFixed(1)}%`;

/** A ratio as a bar with its interval; the line is dense. */
function ratioBar(value, interval, family) {
  const [fill, dense] = [make("i"), make("u")];
  const box = make("span", { class: `bar ${classOf(family)}`, "aria-hidden": "true" }, fill, dense);
  fill.style.width = percent(value / FULL_BAR);
  dense.style.left = percent(1 / FULL_BAR);
  if (interval) {
    const error = make("s");
    error.style.left = percent(interval[0] / FULL_BAR);
    error.style.width = percent((interval[1] - interval[0]) / FULL_BAR);
    box.append(error);
  }
  return box;
}

/** A difference with its interval, from -widest to widest; the line is no difference. */
function whisker(value, [low, high], widest, tone) {
  const [line, zero, dot] = [make("i"), make("u"), make("b")];
  const place = (difference) => percent(0.5 + difference / widest / 2);
  line.style.left = place(low);
  line.style.right = `calc(100% - ${place(high)})`;
  zero.style.left = "50%";
  dot.style.left = place(value);
  return make("span", { class: `bar whisker ${tone}`, "aria-hidden": "true" }, line, zero, dot);
}

/** The class of a number: a difference that its interval shows is good or bad, a doubtful number is pale. */
function toneOf(key, row, value, interval) {
  const isShown = columns.get(key).form === "difference" && interval && (interval[0] > 0 || interval[1] < 0);
  if (isShown) return value > 0 === rows.better[row] > 0 ? "good" : "bad";
  return isRanked(key, row) ? "" : "unranked";
}

function cell(key, row, widest) {
  const column = columns.get(key);
  const value = number(key, row);
  const note = noteOf(key, row);
  const box = make("td", { class: "n", role: "cell", "data-title": column.title });
  if (value === null) {
    const isReference = rows.dense[row] && column.form === "difference";
    box.append(
      isReference ? make("span", { class: "muted" }, "reference") : make("span", { class: "none", title: note }, note),
    );
    return box;
  }
  const interval = intervalOf(key, row);
  const tone = toneOf(key, row, value, interval);
  const arrow = column.form === "score" ? (rows.better[row] > 0 ? " ↑" : " ↓") : "";
  const small = [column.form === "score" ? text("metric", row) : "", writtenInterval(interval, column)];
  box.append(make("span", { class: tone || null }, written(value, column) + arrow));
  for (const part of note ? note.split("; ") : []) {
    box.append(make("span", { class: isRanked(key, row) ? "tag note" : "tag note warn", title: part }, part));
  }
  if (small.some(Boolean)) box.append(make("span", { class: "interval" }, small.filter(Boolean).join(" ")));
  // a bar reads as a saving, so that what may not be ranked has none
  if (column.form === "ratio" && !rows.dense[row] && isRanked(key, row))
    box.append(ratioBar(value, interval, text("family", row)));
  if (column.form === "difference" && interval) box.append(whisker(value, interval, widest, tone));
  return box;
}

const tag = (classes, title, words) => make("span", { class: `tag ${classes}`.trim(), title }, words);

/** The box that chooses a row for the comparison. */
function choiceOf(row) {
  const isChosen = view.compare.includes(row);
  const box = make("input", { type: "checkbox", "data-compare": rows.id[row], title: "Compare: choose two or three" });
  box.setAttribute("aria-label", `Compare ${text("label", row)}`);
  Object.assign(box, { checked: isChosen, disabled: view.compare.length === MOST_COMPARED && !isChosen });
  return make("label", { class: "choice" }, box);
}

function rowLine(row, widest, isOnFront, isBest) {
  const name = make("th", { scope: "row", role: "rowheader" }, choiceOf(row), symbol(text("family", row), "shape"));
  name.append(make("a", { href: `runs/${rows.id[row]}.html` }, text("label", row)));
  if (text("output", row) === "exact" && !rows.dense[row]) {
    name.append(tag("", "greedy output is that of dense", "exact"));
  }
  if (text("saving", row) === "simulated") {
    name.append(tag("warn", "the arithmetic on paper does less, the running code does not", "simulated"));
  }
  if (text("saving", row) === "none here") name.append(tag("warn", notesOf(row).join("; "), "none here"));
  if (isOnFront) name.append(tag("front", "no other row surely costs less and scores more", "on the front"));
  if (isBest)
    name.append(tag("front", `the best that ${columns.get(view.x).title} allows`, `best within ${budgetText()}`));
  if (isApart(row)) name.append(tag("warn", text("apart", row), "not ranked"));
  const runs = runsOfSetting(row);
  if (runs.length > 1) {
    const age = row === runs[0] ? "the newest" : "not the newest";
    const words = `run of ${text("started", row)}, harness ${text("version", row)}: ${age} of ${runs.length}`;
    name.append(make("span", { class: "interval" }, words));
  }
  if (view.list === "one") name.append(make("span", { class: "interval" }, groupTitle(rows.group[row])));
  for (const note of notesOf(row)) name.append(make("span", { class: "interval" }, note));
  if (isApart(row)) name.append(make("span", { class: "interval" }, `apart: ${text("apart", row)}`));
  const cells = view.cols.map((key) => cell(key, row, widest));
  const classes = [rows.dense[row] ? "reference" : "", isBest ? "best" : ""].join(" ").trim();
  return make("tr", { role: "row", class: classes || null }, name, ...cells);
}

function groupLine(group, count) {
  const { model, task, hardware, settings, documents, model_facts, machine_facts, weights } = groups[group];
  const facts = [
    ...model_facts,
    hardware,
    ...machine_facts,
    settings,
    `${documents} documents`,
    `${count} run${count > 1 ? "s" : ""}`,
  ];
  const head = make("th", { colspan: view.cols.length + 1, scope: "rowgroup", role: "rowheader" });
  head.append(
    make("strong", { title: weights }, `${model} · ${task}`),
    ...facts.flatMap((fact) => [make("span", {}, fact), " "]),
  );
  return make("tr", { class: "group", role: "row" }, head);
}

function heading(key, name, help, small = []) {
  const sorted = sortKey(view.sort) !== key ? "none" : isFalling(view.sort) ? "descending" : "ascending";
  const button = make("button", { type: "button", title: help, "data-sort": key }, name);
  const attributes = { scope: "col", role: "columnheader", class: key === "label" ? null : "n", "aria-sort": sorted };
  return make("th", attributes, button, small.length ? make("small", {}, ...small) : null);
}

function headLine() {
  const line = make("tr", { role: "row" });
  line.append(heading("label", "Method", "the method and the parameters that differ from its defaults"));
  for (const key of view.cols) {
    const { title, unit, kind, help, basis } = columns.get(key);
    const small = [`${unit} · `, make("span", { class: "kind" }, kind), ...(basis ? [make("br"), basis] : [])];
    line.append(heading(key, title, help, small));
  }
  return line;
}

/** Rows of one group, or of all in one list where `group` is null; at most `room` of them. */
function tableBody(members, group, room) {
  const edges = members.flatMap((row) => intervalOf("difference", row) ?? []).map(Math.abs);
  const widest = Math.max(1e-9, ...edges); // one scale for the differences of a group
  const onFront = new Set(group === null ? [] : frontRows(members.filter((row) => !isApart(row))));
  const [best] = group === null ? [] : withinBudget(members);
  const lines = members.slice(0, room).map((row) => rowLine(row, widest, onFront.has(row), row === best));
  return make("tbody", { role: "rowgroup" }, group === null ? null : groupLine(group, members.length), ...lines);
}

function drawTable(table, members, limit) {
  const parts = view.list === "one" ? [[null, members]] : grouped(members);
  const bodies = [];
  let room = limit;
  for (const [group, inGroup] of parts) {
    if (room > 0 && inGroup.length) bodies.push(tableBody(inGroup.toSorted(compareRows), group, room));
    room -= inGroup.length;
  }
  table.replaceChildren(table.caption, make("thead", { role: "rowgroup" }, headLine()), ...bodies);
}

/** The rows that may be ranked and those that stand apart; where there are only such, they are the board. */
function parted(shown) {
  const [apart, comparable] = [shown.filter(isApart), shown.filter((row) => !isApart(row))];
  return comparable.length ? { main: comparable, apart } : { main: apart, apart: [] };
}

/** Both tables, and what says that there is more. */
function drawTables(shown) {
  const { main, apart } = parted(shown);
  drawTable(find("board"), main, view.rows);
  drawTable(find("apart-board"), apart, view.rows);
  find("apart").hidden = !apart.length;
  find("scroll").hidden = !main.length;
  find("unranked").hidden = !main.some(isApart);
  find("more").hidden = Math.max(main.length, apart.length) <= view.rows;
}
