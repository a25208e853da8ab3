// Numbers as people read them: harness.reports.numbers, with its digits and signs from the page's data.

const score = (value) =>
  Math.abs(value) < 10 ? value.toFixed(notation.decimals) : Number(value.toPrecision(notation.decimals + 1)).toString();

const ratio = (value) => `${value.toFixed(Math.abs(value) < notation.fine ? 3 : 2)}${notation.cross}`;

function quantity(value, unit) {
  if (unit === "share") return `${(value * 100).toFixed(0)} %`;
  const [size, prefix] = notation.prefixes.find(([size]) => Math.abs(value) >= size) ?? [1, ""];
  return `${Number((value / size).toPrecision(notation.digits))} ${prefix}${unit}`;
}

/** A column's number as a cell, a tip and an axis show it. */
function written(value, column) {
  if (value === null) return "";
  if (column.form === "ratio") return ratio(value);
  if (column.form === "difference") return `${value < 0 ? notation.minus : "+"}${score(Math.abs(value))}`;
  if (column.form === "score") return score(value);
  return quantity(value, column.unit.split("/")[0]); // "J/request": the heading says per what
}

/** An interval of two bounds; empty without one. */
function writtenInterval(bounds, column) {
  if (bounds === null) return "";
  const [low, high] = bounds.map((bound) => written(bound, column).replace(notation.cross, ""));
  return notation.bounds.replace("{}", low).replace("{}", high);
}
