// What the page was built with, read by name. Rows are numbers from 0; every column is an array with a place per row.
// Results come from anybody: every text reaches the page as text (textContent, setAttribute), never as markup.

const board = JSON.parse(document.getElementById("board-data").textContent);
const { rows, numbers, texts, facets, groups, notation } = board;
const facetNames = Object.keys(facets);
const columns = new Map(board.columns.map((column) => [column.key, column]));
const ALL = rows.id.map((_, row) => row);

/** The text of a row in a text column. */
const text = (name, row) => texts[rows[name][row]];

/** The number of a row in a numeric column; `part` is value, low or high. Null where it is not known. */
const number = (key, row, part = "value") => numbers[key][part]?.[row] ?? null;

/** Why there is no number, or how far to trust it. */
const noteOf = (key, row) => texts[numbers[key].note?.[row] ?? 0];

/** What must be read with a row. */
const notesOf = (row) => rows.notes[row].map((number) => texts[number]);

/** Whether a number may be ranked: 0 and 1 in the data, 1 where nothing is said. */
const isRanked = (key, row) => (numbers[key].ranked?.[row] ?? 1) === 1;

/** Both bounds of a number's 95 % interval, or null. */
function intervalOf(key, row) {
  const low = number(key, row, "low");
  const high = number(key, row, "high");
  return low === null || high === null ? null : [low, high];
}

/** Columns hold scores (forms "score" and "difference") or costs ("ratio" and "value"), of which less is better. */
const isCost = (column) => ["ratio", "value"].includes(column.form);

/** 1 where more of a column is better, -1 where less is. */
const sense = (key, row) => (isCost(columns.get(key)) ? -1 : rows.better[row]);

const rowById = new Map(rows.id.map((id, row) => [id, row]));

const groupTitle = (group) => {
  const { model, task, hardware, settings } = groups[group];
  return [model, task, hardware, settings].join(" · ");
};

// ---- families: known ones have an outline of their own, all others share one ---------------------------------------

const outlines = new Map(Object.entries(board.families.known)); // family -> SVG path in a box of 16 by 16
const outlineOf = (family) => outlines.get(family) ?? board.families.other;
const classOf = (family) => `f-${outlines.has(family) ? family : "other"}`;

/** In the order of the known families; the others come last, by name. */
function compareFamilies(a, b) {
  const known = [...outlines.keys()];
  const place = (family) => (outlines.has(family) ? known.indexOf(family) : known.length);
  return place(a) - place(b) || a.localeCompare(b);
}

// ---- elements ------------------------------------------------------------------------------------------------------

const find = (id) => document.getElementById(id);

function withContent(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** An HTML element; attributes that are null or false and children that are null are left out. */
const make = (tag, attributes = {}, ...children) => withContent(document.createElement(tag), attributes, children);

/** The same, of SVG. */
const makeSvg = (tag, attributes = {}, ...children) =>
  withContent(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

/** A family's outline as a picture of its own. */
const symbol = (family, classes = "") =>
  makeSvg(
    "svg",
    { class: `${classes} ${classOf(family)}`.trim(), viewBox: "0 0 16 16", "aria-hidden": "true" },
    makeSvg("path", { d: outlineOf(family) }),
  );
