// The trade-off: one group's rows as points of two columns, with their intervals and the front.

const EDGE = { left: 62, right: 16, top: 14, bottom: 44 }; // pixels around the plot, for the axes' words
const HALF = 6.5; // half a point's size in pixels

/** Round numbers between two, about five of them. */
function ticks(low, high) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 2.5, 5, 10].find((digit) => digit * power >= rough) ?? 10);
  const first = Math.ceil(low / step - 1e-9) * step;
  const count = Math.floor((high - first) / step + 1e-9) + 1;
  return Array.from({ length: count }, (_, index) => Number((first + index * step).toPrecision(12)));
}

/** The span of a column's numbers and intervals, with some room at both ends. */
function span(key, points) {
  const values = points.flatMap((row) => [number(key, row), ...(intervalOf(key, row) ?? [])]);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = (high - low || Math.abs(high) || 1) * 0.08;
  return [low - room, high + room];
}

/** Where numbers lie in a picture of width by height pixels; scores that are better when lower rise downwards. */
function frameOf(points, width, height) {
  const [left, right, top, bottom] = [EDGE.left, width - EDGE.right, EDGE.top, height - EDGE.bottom];
  const [x0, x1] = span(view.x, points);
  const [y0, y1] = span(view.y, points);
  const lessIsBetter = sense(view.y, points[0]) < 0;
  const xOf = (value) => left + ((value - x0) / (x1 - x0)) * (right - left);
  const yOf = (value) => {
    const share = (value - y0) / (y1 - y0);
    return top + (lessIsBetter ? share : 1 - share) * (bottom - top);
  };
  const at = (row) => [xOf(number(view.x, row)), yOf(number(view.y, row))];
  return { left, right, top, bottom, xOf, yOf, at, lessIsBetter, ticksX: ticks(x0, x1), ticksY: ticks(y0, y1) };
}

const lineFrom = (kind, [x1, y1], [x2, y2]) => makeSvg("line", { class: kind, x1, y1, x2, y2 });
const word = (x, y, words, anchor, kind = null) => makeSvg("text", { x, y, "text-anchor": anchor, class: kind }, words);

/** A tick of a score with the digits it needs, not with those of a score. */
const tickText = (tick, column) => (isCost(column) ? written(tick, column) : Number(tick.toPrecision(6)).toString());

/** What the vertical axis shows, above its left end. */
function titleOfY(points, { lessIsBetter }) {
  const column = columns.get(view.y);
  const metric = column.form === "score" ? `: ${text("metric", points[0])}` : "";
  return `${column.title}${lessIsBetter ? ", less is better" : ""}${metric}`;
}

function axes(frame, points, height) {
  const { left, right, top, bottom, xOf, yOf } = frame;
  const [columnX, columnY] = [columns.get(view.x), columns.get(view.y)];
  const parts = [];
  for (const tick of frame.ticksX) {
    parts.push(lineFrom("grid", [xOf(tick), top], [xOf(tick), bottom]));
    parts.push(word(xOf(tick), bottom + 18, tickText(tick, columnX), "middle"));
  }
  for (const tick of frame.ticksY) {
    parts.push(lineFrom("grid", [left, yOf(tick)], [right, yOf(tick)]));
    parts.push(word(left - 8, yOf(tick) + 4, tickText(tick, columnY), "end"));
  }
  parts.push(lineFrom("axis", [left, bottom], [right, bottom]));
  const hintX = columnX.form === "ratio" ? " — less is better" : "";
  const titleX = `${columnX.title}, ${columnX.unit} (${columnX.kind})`;
  const hasRoom = widthOf(titleX + hintX, "600 12px") < right - 8;
  parts.push(word(right, height - 6, hasRoom ? titleX + hintX : titleX, "end", "name"));
  parts.push(word(left + 6, top + 12, titleOfY(points, frame), "start", "name"));
  const dense = points.find((row) => rows.dense[row]);
  if (dense !== undefined) {
    const [x, y] = frame.at(dense);
    parts.push(lineFrom("dense", [left, y], [right, y]), lineFrom("dense", [x, top], [x, bottom]));
  }
  return parts;
}

/** The front of the estimates alone: by rising cost, each step strictly better than the one before. */
function staircase(points) {
  const quality = (row) => number(view.y, row) * sense(view.y, row);
  const cheapestFirst = points
    .filter((row) => isRanked(view.x, row))
    .sort((a, b) => number(view.x, a) - number(view.x, b) || quality(b) - quality(a));
  const steps = [];
  for (const row of cheapestFirst) if (!steps.length || quality(row) > quality(steps.at(-1))) steps.push(row);
  return steps;
}

/** What lies beyond the budget, in shade. */
function budgetArea({ left, right, top, bottom, xOf }) {
  if (view.budget === null) return [];
  const x = Math.max(left, Math.min(right, xOf(view.budget)));
  const shade = makeSvg("rect", { class: "beyond", x, y: top, width: right - x, height: bottom - top });
  return [shade, lineFrom("limit", [x, top], [x, bottom])];
}

function staircasePath(points, frame) {
  const corners = staircase(points).map(frame.at); // [steps, 2]
  if (corners.length < 2) return [];
  const [[x, y], ...rest] = corners;
  return [makeSvg("path", { class: "front", d: `M${x} ${y}${rest.map(([x, y]) => `H${x}V${y}`).join("")}` })];
}

/** A row's point, a link to its page; `place` is its place among the points from left to right. */
function pointOf(row, place, frame, isOnFront) {
  const [x, y] = frame.at(row);
  const family = text("family", row);
  const facts = [view.y, view.x].map((key) => {
    const column = columns.get(key);
    const interval = writtenInterval(intervalOf(key, row), column);
    return `${column.title} ${written(number(key, row), column)} ${interval}`.trim();
  });
  const words = [text("label", row), ...facts];
  const mark = makeSvg("a", {
    href: `runs/${rows.id[row]}.html`,
    class: `point ${classOf(family)}${isOnFront ? " kept" : ""}`,
    tabindex: place ? -1 : 0,
    "aria-label": `${words.join(", ")}${isOnFront ? ", on the front" : ""}`,
  });
  const [across, up] = [intervalOf(view.x, row), intervalOf(view.y, row)];
  if (up) mark.append(lineFrom("error", [x, frame.yOf(up[0])], [x, frame.yOf(up[1])]));
  if (across) mark.append(lineFrom("error", [frame.xOf(across[0]), y], [frame.xOf(across[1]), y]));
  const transform = `translate(${x - HALF} ${y - HALF}) scale(${HALF / 8})`; // an outline fills 16 by 16
  mark.append(makeSvg("circle", { class: "ring", cx: x, cy: y, r: 12 }));
  mark.append(makeSvg("path", { d: outlineOf(family), transform }));
  for (const kind of ["pointerenter", "focus"]) mark.addEventListener(kind, () => showTip(words, x, y));
  for (const kind of ["pointerleave", "blur"]) mark.addEventListener(kind, hideTip);
  return mark;
}

function picture(points) {
  const width = Math.max(300, Math.min(find("plot").clientWidth || 800, 1400));
  const height = Math.max(240, Math.min(400, width / 2));
  const frame = frameOf(points, width, height);
  const ranked = points.filter((row) => !isApart(row));
  const onFront = new Set(frontRows(ranked));
  const [best] = withinBudget(ranked);
  const fromLeft = points.toSorted(
    (a, b) => number(view.x, a) - number(view.x, b) || number(view.y, a) - number(view.y, b),
  );
  const named = [...new Set([best, ...fromLeft.filter((row) => onFront.has(row))])].filter((row) => row !== undefined);
  const titleBox = { left: frame.left, top: 0, bottom: frame.top + 18 };
  titleBox.right = frame.left + 6 + widthOf(titleOfY(points, frame), "600 12px");
  const about = `${columns.get(view.y).title} against ${columns.get(view.x).title}, ${points.length} runs`;
  return makeSvg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": about },
    ...budgetArea(frame),
    ...axes(frame, points, height),
    ...staircasePath(ranked, frame),
    ...fromLeft.map((row, place) => pointOf(row, place, frame, onFront.has(row))),
    ...names(named, points, frame, [titleBox]),
  );
}

const FILLED = "filled: no other row surely costs less and scores more";

function legend(points) {
  const families = [...new Set(points.map((row) => text("family", row)))].sort(compareFamilies);
  return [
    ...families.map((family) => make("li", {}, symbol(family), family)),
    make("li", {}, points.some((row) => !isApart(row)) ? FILLED : "none of these may be ranked"),
    make("li", {}, "bars are 95 % intervals"),
  ];
}

/** The chart of the chosen group, or of the one with the most rows. */
function drawChart(shown) {
  const inGroups = grouped(parted(shown).main);
  const largest = inGroups.toSorted(([, a], [, b]) => b.length - a.length)[0];
  const [group, members] = inGroups.find(([group]) => groups[group].slug === view.chart) ?? largest ?? [null, []];
  const options = inGroups.map(([group]) => [groups[group].slug, groupTitle(group)]);
  fill(find("chart-group"), options, group === null ? "" : groups[group].slug);
  const points = members.filter((row) => number(view.x, row) !== null && number(view.y, row) !== null);
  drawBudget(points);
  if (points.length) {
    const tip = make("div", { class: "tip", hidden: "", "aria-hidden": "true" });
    find("plot").replaceChildren(picture(points), tip);
    find("legend").replaceChildren(...legend(points));
  } else {
    const reason = group === null ? "No runs are shown." : "No run of this group has both numbers.";
    find("plot").replaceChildren(make("p", { class: "muted" }, reason));
    find("legend").replaceChildren();
  }
}

// ---- the tip, and the way along the points -------------------------------------------------------------------------

function showTip(words, x, y) {
  const plot = find("plot");
  const [tip, svg] = [plot.querySelector(".tip"), plot.querySelector("svg")];
  const scale = svg.clientWidth / svg.viewBox.baseVal.width;
  const [name, ...facts] = words;
  tip.replaceChildren(make("strong", {}, name), ...facts.map((fact) => make("div", {}, fact)));
  tip.hidden = false;
  tip.style.left = `${Math.min(Math.max(0, x * scale + 14), plot.clientWidth - tip.offsetWidth)}px`;
  tip.style.top = `${Math.max(0, y * scale - tip.offsetHeight - 12)}px`;
}

function hideTip() {
  find("plot").querySelector(".tip").hidden = true;
}

/** Arrow keys walk along the points, of which a single one is in the tab order. */
function walkPoints(event) {
  const way = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  const points = [...find("plot").querySelectorAll(".point")];
  const place = points.indexOf(document.activeElement);
  if (!way || place < 0) return;
  event.preventDefault();
  const next = points[Math.max(0, Math.min(points.length - 1, place + way))];
  for (const point of points) point.setAttribute("tabindex", point === next ? 0 : -1);
  next.focus();
}
