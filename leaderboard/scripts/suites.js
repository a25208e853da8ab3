// One score of a method over several tasks: the mean of its differences to dense, where it was run on every task.

const SUITE_COSTS = ["flops", "latency"].filter((key) => columns.get(key)?.known);
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** The groups that one score is made over, by suite: those in which dense was run and scores are shares. */
function suiteTasks() {
  const bySuite = new Map();
  for (const row of ALL) {
    const number = rows.group[row];
    const isAsked = !view.task.size || view.task.has(text("task", row));
    if (!rows.dense[row] || isApart(row) || !isAsked) continue;
    const { suite, is_share } = groups[number];
    if (!bySuite.has(suite)) bySuite.set(suite, { tasks: new Set(), others: new Set() });
    bySuite.get(suite)[is_share ? "tasks" : "others"].add(number);
  }
  return new Map([...bySuite].filter(([, { tasks }]) => tasks.size > 1));
}

/** A method's newest run in each group of a suite, by suite and method: rows come with the newest first. */
function suiteRuns(suites) {
  const runs = new Map([...suites.keys()].map((suite) => [suite, new Map()]));
  for (const row of ALL) {
    const group = rows.group[row];
    const { suite } = groups[group];
    if (isApart(row) || !suites.get(suite)?.tasks.has(group)) continue;
    const byMethod = runs.get(suite);
    const label = rows.label[row];
    if (!byMethod.has(label)) byMethod.set(label, new Map());
    if (!byMethod.get(label).has(group)) byMethod.get(label).set(group, row);
  }
  return runs;
}

/** A method's line: its one score, or the tasks that it lacks; a mean over fewer tasks is none. */
function suiteLine(byGroup, tasks) {
  const runs = [...byGroup.values()];
  const isDense = rows.dense[runs[0]] === 1;
  const isKnown = (row) => isDense || number("difference", row) !== null;
  const lacks = [...tasks].filter((group) => !byGroup.has(group) || !isKnown(byGroup.get(group)));
  const line = { row: runs[0], runs, isDense, lacks, score: null, difference: null, bounds: null, least: null };
  if (lacks.length) return line;
  line.score = mean(runs.map((row) => number("quality", row)));
  if (isDense) return line;
  const differences = runs.map((row) => number("difference", row));
  line.difference = mean(differences);
  line.least = runs[differences.indexOf(Math.min(...differences))];
  line.bounds = boundsOfMean(runs);
  return line;
}

/** The interval of a mean of differences whose errors are independent; null where one of them has none. */
function boundsOfMean(runs) {
  const bounds = runs.map((row) => intervalOf("difference", row));
  if (bounds.includes(null)) return null;
  const centres = runs.map((row) => number("difference", row));
  const [below, above] = [0, 1].map(
    (side) => Math.sqrt(bounds.reduce((sum, pair, place) => sum + (pair[side] - centres[place]) ** 2, 0)) / runs.length,
  );
  return [mean(centres) - below, mean(centres) + above];
}

/** The geometric mean of a method's ratios; null where one is absent or may not be ranked. */
function meanRatio(key, { runs, lacks }) {
  const ratios = runs.map((row) => (isRanked(key, row) ? number(key, row) : null));
  if (lacks.length || !ratios.every((ratio) => ratio > 0)) return null;
  return Math.exp(mean(ratios.map(Math.log)));
}

/** Dense first, then by the score, then those that lack tasks. */
function compareLines(a, b) {
  return (
    b.isDense - a.isDense ||
    (a.difference === null) - (b.difference === null) ||
    b.difference - a.difference ||
    text("label", a.row).localeCompare(text("label", b.row))
  );
}

function suiteRow(line) {
  const { row, isDense, lacks, score, difference, bounds, least } = line;
  const [asScore, asDifference] = [columns.get("quality"), columns.get("difference")];
  const cell = (title, ...children) => make("td", { class: "n", role: "cell", "data-title": title }, ...children);
  const small = (words) => make("span", { class: "interval" }, words);
  const head = make("th", { scope: "row", role: "rowheader" }, symbol(text("family", row), "shape"));
  head.append(text("label", row));
  if (text("saving", row) === "simulated") head.append(tag("warn", "not by the running code", "simulated"));
  if (lacks.length) {
    const names = lacks.map((group) => groups[group].task).join(", ");
    const none = make("span", { class: "muted small" }, `no score: not run on ${names}`);
    const box = make("td", { role: "cell", colspan: 3 + SUITE_COSTS.length }, none);
    return make("tr", { role: "row" }, head, box);
  }
  const interval = bounds ? writtenInterval(bounds, asDifference) : "no interval: a task has none";
  const mean = isDense
    ? [make("span", { class: "muted" }, "reference")]
    : [written(difference, asDifference), small(interval)];
  const worst = isDense
    ? []
    : [written(number("difference", least), asDifference), small(groups[rows.group[least]].task)];
  const ratios = SUITE_COSTS.map((key) => {
    const value = meanRatio(key, line);
    return cell(
      columns.get(key).title,
      value === null ? make("span", { class: "none" }, "not of all tasks") : ratio(value),
    );
  });
  return make(
    "tr",
    { role: "row", class: isDense ? "reference" : null },
    head,
    cell("Mean score", written(score, asScore)),
    cell("Mean, against dense", ...mean),
    cell("Lowest task", ...worst),
    ...ratios,
  );
}

function suiteBody(suite, { tasks, others }, lines) {
  const { model, hardware, settings } = groups[[...tasks][0]];
  const names = [...tasks].map((group) => groups[group].task).join(", ");
  const left = [...others].map((group) => groups[group].task).join(", ");
  const facts = [hardware, settings, `${tasks.size} tasks: ${names}`, left ? `not in the mean: ${left}` : ""];
  const head = make("th", { colspan: 4 + SUITE_COSTS.length, scope: "rowgroup", role: "rowheader" });
  head.append(make("strong", {}, model), ...facts.filter(Boolean).flatMap((fact) => [make("span", {}, fact), " "]));
  const group = make("tr", { class: "group", role: "row" }, head);
  return make("tbody", { role: "rowgroup" }, group, ...lines.map(suiteRow));
}

function suiteHead() {
  const costs = SUITE_COSTS.map((key) => [columns.get(key).title, "geometric mean, × dense"]);
  const titles = [
    ["Mean score", "of all tasks"],
    ["Mean, against dense", "of all tasks"],
    ["Lowest task", "against dense"],
  ];
  const heads = [...titles, ...costs].map(([title, small]) =>
    make("th", { scope: "col", role: "columnheader", class: "n" }, title, make("small", {}, small)),
  );
  return make(
    "thead",
    { role: "rowgroup" },
    make("tr", { role: "row" }, make("th", { scope: "col", role: "columnheader" }, "Method"), ...heads),
  );
}

/** The suites of which some run is shown; tasks are left out by the reader's choice of tasks alone. */
function drawSuites(shown) {
  const suites = suiteTasks();
  const runs = suiteRuns(suites);
  const isShown = new Set(shown);
  const bodies = [];
  let room = view.rows;
  for (const [suite, groupsOfSuite] of suites) {
    const lines = [...runs.get(suite).values()]
      .map((byGroup) => suiteLine(byGroup, groupsOfSuite.tasks))
      .filter((line) => line.runs.some((row) => isShown.has(row)))
      .sort(compareLines);
    if (room > 0 && lines.length) bodies.push(suiteBody(suite, groupsOfSuite, lines.slice(0, room)));
    room -= lines.length;
  }
  for (const id of ["suites", "to-suites"]) find(id).hidden = !bodies.length;
  const table = find("suites-table");
  table.replaceChildren(table.caption, suiteHead(), ...bodies);
}
