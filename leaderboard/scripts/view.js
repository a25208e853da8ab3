// The view: what is searched, filtered, sorted and drawn. The page's address holds all of it.

const PAGE = 50; // rows shown at first, and more at a time
const MOST_COMPARED = 3; // runs side by side
const START = { sort: "-quality", x: "flops", y: "quality", rows: PAGE, list: "groups" };
const shownAtFirst = board.columns.filter((column) => column.shown).map((column) => column.key);

/** A sort is a column's key, or "label"; a minus before it means falling. */
const sortKey = (sort) => sort.replace(/^-/, "");
const isFalling = (sort) => sort.startsWith("-");

function readAddress() {
  const asked = new URLSearchParams(location.search);
  const valid = (name, fallback, isValid) => {
    const value = asked.get(name);
    return value !== null && isValid(value) ? value : fallback;
  };
  const view = { q: asked.get("q") ?? "" };
  for (const name of facetNames) view[name] = new Set(asked.getAll(name));
  view.sort = valid("sort", START.sort, (sort) => sortKey(sort) === "label" || columns.has(sortKey(sort)));
  view.cols = (asked.get("cols")?.split(",") ?? shownAtFirst).filter((key) => columns.has(key));
  view.x = valid("x", START.x, (key) => columns.get(key)?.known && isCost(columns.get(key)));
  view.y = valid("y", START.y, (key) => columns.get(key)?.known);
  view.chart = valid("chart", null, (slug) => groups.some((group) => group.slug === slug));
  const budget = valid("budget", null, (text) => /^[\d.]/.test(text) && Number.isFinite(Number(text)));
  view.budget = budget === null ? null : Number(budget);
  const chosen = [...new Set(asked.get("compare")?.split(",").filter(Boolean) ?? [])];
  const known = chosen.filter((id) => rowById.has(id));
  view.compare = known.slice(0, MOST_COMPARED).map((id) => rowById.get(id));
  view.gone = chosen.length - known.length;
  view.rows = Math.max(PAGE, Number.parseInt(asked.get("rows"), 10) || PAGE);
  view.list = valid("list", START.list, (list) => list === "one");
  return view;
}

function writeAddress() {
  const asked = new URLSearchParams();
  if (view.q) asked.set("q", view.q);
  for (const name of facetNames) for (const value of view[name]) asked.append(name, value);
  for (const name of Object.keys(START)) if (view[name] !== START[name]) asked.set(name, view[name]);
  if (view.budget !== null) asked.set("budget", view.budget);
  if (view.compare.length) asked.set("compare", view.compare.map((row) => rows.id[row]).join());
  if (view.chart) asked.set("chart", view.chart);
  if (view.cols.join() !== shownAtFirst.join()) asked.set("cols", view.cols.join());
  const search = asked.toString();
  history.replaceState(null, "", search ? `?${search}` : location.pathname.split("/").pop() || "./");
}

const view = readAddress();

// ---- which rows ----------------------------------------------------------------------------------------------------

/** What a search looks through, row by row. */
const searchable = ALL.map((row) =>
  [rows.id[row], text("label", row), ...facetNames.map((name) => text(name, row)), text("settings", row)]
    .join(" ")
    .toLowerCase(),
);

/** Whether a row fits the search and all filters, those of one facet left out where it counts its own choices. */
function passes(row, without = null) {
  for (const name of facetNames) {
    if (name !== without && view[name].size && !view[name].has(text(name, row))) return false;
  }
  const words = view.q.toLowerCase().split(/\s+/).filter(Boolean);
  return words.every((word) => searchable[row].includes(word));
}

const shownRows = () => ALL.filter((row) => passes(row));
const isApart = (row) => text("apart", row) !== "";

/** Runs of one setting in one group, such as of two versions: by group and label, with the newest first. */
const settingOf = (row) => `${rows.group[row]} ${rows.label[row]}`;
const runsBySetting = new Map(ALL.map((row) => [settingOf(row), []]));
for (const row of ALL) runsBySetting.get(settingOf(row)).push(row);
const runsOfSetting = (row) => runsBySetting.get(settingOf(row));

// ---- in which order ------------------------------------------------------------------------------------------------

/** The first click on a score's heading shows the highest first, on a cost's the cheapest. */
const firstSort = (key) => (["quality", "difference"].includes(key) ? `-${key}` : key);

/** What a column is sorted by: scores by goodness, whichever way is better, everything else by the number itself. */
function sortValue(key, row) {
  const value = number(key, row);
  const lessIsBetter = firstSort(key) !== key && sense(key, row) < 0;
  return value !== null && lessIsBetter ? -value : value;
}

/** Dense leads its group; rows without a number come last, and those that may not be ranked before them. */
function compareRows(a, b) {
  if (rows.dense[a] !== rows.dense[b] && view.list !== "one") return rows.dense[b] - rows.dense[a];
  const key = sortKey(view.sort);
  const way = isFalling(view.sort) ? -1 : 1;
  if (key === "label") return way * text("label", a).localeCompare(text("label", b));
  const [valueA, valueB] = [sortValue(key, a), sortValue(key, b)];
  if (valueA === null || valueB === null) return (valueA === null) - (valueB === null);
  return isRanked(key, b) - isRanked(key, a) || way * (valueA - valueB) || a - b;
}

/** Rows by group, as [group, rows] in the order of the groups. */
function grouped(members) {
  const byGroup = new Map();
  for (const row of members) {
    const group = rows.group[row];
    if (!byGroup.has(group)) byGroup.set(group, []);
    byGroup.get(group).push(row);
  }
  return [...byGroup].sort(([a], [b]) => a - b);
}

/** The interval by which a number is compared: dense's ratio to itself is exact. */
function knownWithin(key, row) {
  return rows.dense[row] && columns.get(key).form === "ratio" ? [1, 1] : intervalOf(key, row);
}

/** The rows on the front of the view's two axes: costs are better when lower, scores as their metric says. */
function frontRows(members) {
  const candidates = members.filter(
    (row) => number(view.x, row) !== null && number(view.y, row) !== null && isRanked(view.x, row),
  );
  const points = candidates.map((row) => {
    const way = sense(view.y, row);
    const bounds = knownWithin(view.y, row)?.map((bound) => bound * way) ?? null;
    return {
      cost: number(view.x, row),
      quality: number(view.y, row) * way,
      costInterval: knownWithin(view.x, row),
      qualityInterval: bounds && (way < 0 ? bounds.reverse() : bounds),
      costKind: columns.get(view.x).kind,
      qualityKind: columns.get(view.y).kind,
    };
  });
  return front(points).map((index) => candidates[index]);
}
