// The board: filter, sort, choose columns, share the view by its address, draw the trade-off. One module, no library.
// Results are strangers' data: every text reaches the page as text (textContent, setAttribute), never as markup.

const board = JSON.parse(document.getElementById("board-data").textContent);
const { rows, numbers, texts, facets, groups } = board;
const columns = new Map(board.columns.map((column) => [column.key, column]));
const text = (name, row) => texts[rows[name][row]];
const number = (key, row, part = "value") => numbers[key][part]?.[row] ?? null;
const noteOf = (key, row) => texts[numbers[key].note?.[row] ?? 0];
const ranked = (key, row) => (numbers[key].ranked?.[row] ?? 1) === 1;
const find = (id) => document.getElementById(id);
const PAGE = 50;
const ALL = rows.id.map((_, row) => row);
const searched = ALL.map((row) => [rows.id[row], text("label", row), ...Object.keys(facets).map((name) => text(name, row)), text("settings", row)].join(" ").toLowerCase());

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "g", "line", "text", "circle", "title", "a:svg"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag.split(":")[0]) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null && value !== false) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

// ---- the view and its address ------------------------------------------------------------------------------------

const START = { sort: "-quality", x: "flops", y: "quality", rows: PAGE, list: "groups" };
const shownAtFirst = board.columns.filter((column) => column.shown).map((column) => column.key);

function readAddress() {
  const asked = new URLSearchParams(location.search);
  const known = (key, otherwise, may = () => true) => { const found = asked.get(key); return found !== null && may(found) ? found : otherwise; };
  const view = { q: asked.get("q") ?? "" };
  for (const name of Object.keys(facets)) view[name] = new Set(asked.getAll(name));
  view.sort = known("sort", START.sort, (sort) => sort.replace(/^-/, "") === "label" || columns.has(sort.replace(/^-/, "")));
  view.cols = (asked.get("cols")?.split(",") ?? shownAtFirst).filter((key) => columns.has(key));
  view.x = known("x", START.x, (key) => columns.get(key)?.known);
  view.y = known("y", START.y, (key) => columns.get(key)?.known);
  view.chart = known("chart", null, (slug) => groups.some((group) => group.slug === slug));
  view.rows = Math.max(PAGE, Number.parseInt(asked.get("rows"), 10) || PAGE);
  view.list = known("list", START.list, (list) => list === "one");
  return view;
}

function writeAddress() {
  const asked = new URLSearchParams();
  if (view.q) asked.set("q", view.q);
  for (const name of Object.keys(facets)) for (const value of view[name]) asked.append(name, value);
  for (const key of Object.keys(START)) if (view[key] !== START[key]) asked.set(key, view[key]);
  if (view.chart) asked.set("chart", view.chart);
  if (view.cols.join() !== shownAtFirst.join()) asked.set("cols", view.cols.join());
  const search = asked.toString();
  history.replaceState(null, "", search ? `?${search}` : location.pathname.split("/").pop() || "./");
}

let view = readAddress();

// ---- which rows, in which order ----------------------------------------------------------------------------------

function passes(row, without = null) {
  for (const name of Object.keys(facets)) {
    if (name !== without && view[name].size && !view[name].has(text(name, row))) return false;
  }
  const words = view.q.toLowerCase().split(/\s+/).filter(Boolean);
  return words.every((word) => searched[row].includes(word));
}

/** Best first for scores, whichever way is better; for the rest the number itself. */
const sortValue = (key, row) => {
  const found = number(key, row);
  return found !== null && sense(key, row) === -1 && rows.better[row] === -1 && firstWay(key) ? -found : found;
};

function compare(one, other) {
  const key = view.sort.replace(/^-/, ""), way = view.sort.startsWith("-") ? -1 : 1;
  if (rows.dense[one] !== rows.dense[other] && view.list !== "one") return rows.dense[other] - rows.dense[one];
  if (key === "label") return way * text("label", one).localeCompare(text("label", other));
  const a = sortValue(key, one), b = sortValue(key, other);
  if (a === null || b === null) return (a === null) - (b === null);
  return ranked(key, other) - ranked(key, one) || way * (a - b) || one - other;
}

function grouped(found) {
  const by = new Map();
  for (const row of found) {
    const group = rows.group[row];
    if (!by.has(group)) by.set(group, []);
    by.get(group).push(row);
  }
  return [...by].sort(([a], [b]) => a - b);
}

// ---- numbers as people read them ---------------------------------------------------------------------------------

const PREFIXES = [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""], [1e-3, "m"], [1e-6, "µ"], [1e-9, "n"]];

function plain(value, column) {
  if (value === null) return "";
  if (column.form === "ratio") return `${value.toFixed(value < 0.095 ? 3 : 2)}×`;
  if (column.form === "difference") return `${value < 0 ? "−" : "+"}${decimals(Math.abs(value))}`;
  if (column.form === "score") return decimals(value);
  const [unit, per] = column.unit.split("/");
  if (unit === "share") return `${Math.round(value * 100)} %`;
  const [size, prefix] = PREFIXES.find(([size]) => Math.abs(value) >= size) ?? [1, ""];
  return `${Number((value / size).toPrecision(3))} ${prefix}${unit}${per ? "" : ""}`;
}

const decimals = (value) => Math.abs(value) < 10 ? value.toFixed(4) : Number(value.toPrecision(5)).toString();

function range(key, row, column) {
  const low = number(key, row, "low"), high = number(key, row, "high");
  if (low === null || high === null) return "";
  return `${plain(low, column).replace("×", "")} to ${plain(high, column).replace("×", "")}`;
}

// ---- the table ---------------------------------------------------------------------------------------------------

const SHAPES = {
  baseline: "M1 1H15V15H1Z", routing: "M8 1A7 7 0 1 1 7.99 1Z", "early-exit": "M8 .5 15.5 14.5H.5Z", pruning: "M8 0 16 8 8 16 0 8Z",
  quantization: "M.5 1.5H15.5L8 15.5Z", sparse: "M5.5 1h5v4.5H15v5h-4.5V15h-5v-4.5H1v-5h4.5Z", other: "M4 8A4 4 0 1 1 4 8.01Z",
};
const familyOf = (row) => (text("family", row) in SHAPES ? text("family", row) : "other");
const shape = (family) => make("svg", { class: `shape f-${family}`, viewBox: "0 0 16 16", "aria-hidden": "true" }, make("path", { d: SHAPES[family] }));

function cell(key, row, widest) {
  const column = columns.get(key), value = number(key, row), box = make("td", { class: "n", role: "cell", "data-title": column.title });
  const note = noteOf(key, row);
  if (value === null) {
    if (rows.dense[row] && column.form === "difference") box.append(make("span", { class: "muted" }, "reference"));
    else box.append(make("span", { class: "none", title: note }, note));
    return box;
  }
  const low = number(key, row, "low"), high = number(key, row, "high"), better = rows.better[row];
  const sure = column.form === "difference" && low !== null && (low > 0 || high < 0);
  const tone = sure ? ((value > 0) === (better > 0) ? "good" : "bad") : ranked(key, row) ? "" : "unranked";
  const arrow = column.form === "score" ? (better > 0 ? " ↑" : " ↓") : "";
  box.append(make("span", { class: tone || null }, plain(value, column) + arrow));
  if (note) box.append(make("span", { class: ranked(key, row) ? "tag note" : "tag note warn", title: note }, note));
  const interval = range(key, row, column);
  if (column.form === "score") box.append(make("span", { class: "interval" }, [text("metric", row), interval].filter(Boolean).join(" ")));
  else if (interval) box.append(make("span", { class: "interval" }, interval));
  if (column.form === "ratio" && !rows.dense[row]) box.append(bar(value, low, high, familyOf(row)));
  if (column.form === "difference" && low !== null) box.append(whisker(value, low, high, widest, tone));
  return box;
}

const percent = (share) => `${Math.max(0, Math.min(100, share * 100)).toFixed(1)}%`;

/** A ratio as a bar: full width is 1.25 × dense, the line is dense. */
function bar(value, low, high, family) {
  const fill = make("i"), one = make("u"), box = make("span", { class: `bar f-${family}`, "aria-hidden": "true" }, fill, one);
  fill.style.width = percent(value / 1.25);
  one.style.left = percent(1 / 1.25);
  if (low !== null && high !== null) {
    const error = make("s");
    error.style.left = percent(low / 1.25);
    error.style.width = percent((high - low) / 1.25);
    box.append(error);
  }
  return box;
}

/** A difference with its interval; the line is no difference. */
function whisker(value, low, high, widest, tone) {
  const line = make("i"), zero = make("u"), dot = make("b"), place = (at) => percent(0.5 + at / widest / 2);
  line.style.left = place(low);
  line.style.right = `calc(100% - ${place(high)})`;
  zero.style.left = "50%";
  dot.style.left = place(value);
  return make("span", { class: `bar whisker ${tone}`, "aria-hidden": "true" }, line, zero, dot);
}

function line(row, widest, front) {
  const family = familyOf(row), name = make("th", { scope: "row", role: "rowheader" }, shape(family));
  name.append(make("a", { href: `runs/${rows.id[row]}.html` }, text("label", row)));
  if (text("output", row) === "exact" && !rows.dense[row]) name.append(make("span", { class: "tag", title: "greedy output is that of dense" }, "exact"));
  if (text("saving", row) === "simulated") name.append(make("span", { class: "tag warn", title: "the arithmetic on paper does less, the running code does not" }, "simulated"));
  if (front.has(row)) name.append(make("span", { class: "tag front", title: "no other row surely costs less and scores more" }, "on the front"));
  if (view.list === "one") name.append(make("span", { class: "interval" }, title(rows.group[row])));
  if (text("apart", row)) name.append(make("span", { class: "interval" }, `apart: ${text("apart", row)}`));
  return make("tr", { role: "row", class: rows.dense[row] ? "reference" : null }, name, ...view.cols.map((key) => cell(key, row, widest)));
}

const title = (group) => `${groups[group].model} · ${groups[group].task} · ${groups[group].hardware} · ${groups[group].settings}`;

function groupLine(group, count) {
  const about = groups[group];
  const head = make("th", { colspan: view.cols.length + 1, scope: "rowgroup", role: "rowheader" }, make("strong", {}, `${about.model} · ${about.task}`));
  head.append(make("span", {}, about.hardware), " ", make("span", {}, about.settings), " ", make("span", {}, `${about.documents} documents`), " ", make("span", {}, `${count} run${count > 1 ? "s" : ""}`));
  return make("tr", { class: "group", role: "row" }, head);
}

function heading(key, name, small, help) {
  const sorted = view.sort.replace(/^-/, "") === key, way = view.sort.startsWith("-") ? "descending" : "ascending";
  const button = make("button", { type: "button", title: help, "data-sort": key }, name);
  const cellOf = make("th", { scope: "col", role: "columnheader", class: key === "label" ? null : "n", "aria-sort": sorted ? way : "none" }, button);
  if (small) cellOf.append(make("small", {}, ...small));
  return cellOf;
}

const firstWay = (key) => (["quality", "difference"].includes(key) ? "-" : "");

function sortBy(key) {
  const first = firstWay(key) + key, second = first.startsWith("-") ? key : `-${key}`;
  view.sort = view.sort === first ? second : first;
  drawTables();
  writeAddress();
  find("sort").value = view.sort;
  document.querySelector(`[data-sort="${key}"]`)?.focus({ preventScroll: true });
}

function drawTable(table, found, limit) {
  const head = make("tr", { role: "row" }, heading("label", "Method", null, "the method and the parameters that differ from its defaults"));
  for (const key of view.cols) {
    const column = columns.get(key);
    head.append(heading(key, column.title, [`${column.unit} · `, make("span", { class: "kind" }, column.kind)], column.help));
  }
  const bodies = [];
  let left = limit;
  const draw = (some, group) => {
    const kept = some.slice(0, left);
    left -= kept.length;
    const widest = Math.max(1e-9, ...some.map((row) => Math.max(Math.abs(number("difference", row, "low") ?? 0), Math.abs(number("difference", row, "high") ?? 0))));
    const front = group === null ? new Set() : new Set(frontOf(some.filter((row) => !text("apart", row)), view.x, view.y));
    const body = make("tbody", { role: "rowgroup" }, ...(group === null ? [] : [groupLine(group, some.length)]), ...kept.map((row) => line(row, widest, front)));
    if (kept.length) bodies.push(body);
  };
  if (view.list === "one") draw(found.toSorted(compare), null);
  else for (const [group, some] of grouped(found)) { if (left <= 0) break; draw(some.sort(compare), group); }
  table.replaceChildren(table.caption, make("thead", { role: "rowgroup" }, head), ...bodies);
}

// ---- the trade-off -----------------------------------------------------------------------------------------------

/** 1 where more of a column is better, -1 where less is. */
const sense = (key, row) => (["score", "difference"].includes(columns.get(key).form) ? rows.better[row] : -1);

/** Whether two values differ by more than chance: each lies outside the other's interval; without intervals, at all. */
function apart(key, one, other) {
  const low = (row) => number(key, row, "low"), high = (row) => number(key, row, "high"), a = number(key, one), b = number(key, other);
  if ([one, other].some((row) => low(row) === null || high(row) === null)) return a !== b;
  return (high(one) < b && a < low(other)) || (high(other) < a && b < low(one));
}

/** Rows that no other surely dominates: no worse in both, and in one better by more than chance. */
function frontOf(some, x, y) {
  const points = some.filter((row) => number(x, row) !== null && number(y, row) !== null && ranked(x, row));
  const beats = (one, other) => number(x, one) <= number(x, other)
    && (number(y, one) - number(y, other)) * sense(y, one) >= 0 && (apart(x, one, other) || apart(y, one, other));
  return points.filter((row) => !points.some((other) => beats(other, row)));
}

function ticks(low, high) {
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 2.5, 5, 10].find((each) => each * power >= rough) ?? 10);
  const first = Math.ceil(low / step - 1e-9) * step;
  return Array.from({ length: Math.floor((high - first) / step + 1e-9) + 1 }, (_, i) => Number((first + i * step).toPrecision(12)));
}

function spread(values) {
  const low = Math.min(...values), high = Math.max(...values), pad = (high - low || Math.abs(high) || 1) * 0.08;
  return [low - pad, high + pad];
}

function drawChart(found) {
  const inGroups = grouped(found.filter((row) => !text("apart", row)));
  const biggest = inGroups.reduce((best, each) => (best && best[1].length >= each[1].length ? best : each), null);
  const chosen = inGroups.find(([group]) => groups[group].slug === view.chart) ?? biggest;
  fill(find("chart-group"), inGroups.map(([group]) => [groups[group].slug, title(group)]), chosen ? groups[chosen[0]].slug : "");
  const plot = find("plot");
  const points = (chosen?.[1] ?? []).filter((row) => number(view.x, row) !== null && number(view.y, row) !== null);
  plot.replaceChildren();
  find("legend").replaceChildren();
  if (!points.length) {
    plot.append(make("p", { class: "muted" }, chosen ? "No run of this group has both numbers." : "No comparable runs are shown."));
    return;
  }
  plot.append(picture(points), make("div", { class: "tip", hidden: "", "aria-hidden": "true" }));
  for (const family of new Set(points.map(familyOf))) find("legend").append(make("li", {}, make("svg", { viewBox: "0 0 16 16", class: `f-${family}`, "aria-hidden": "true" }, make("path", { d: SHAPES[family] })), family));
  find("legend").append(make("li", {}, "filled: no other row surely costs less and scores more; bars are 95 % intervals"));
}

function picture(points) {
  const wide = find("plot").clientWidth || 800, W = Math.max(300, Math.min(wide, 1400)), H = Math.max(240, Math.min(400, W * 0.5));
  const edge = { left: 62, right: 16, top: 14, bottom: 44 }, X = columns.get(view.x), Y = columns.get(view.y);
  const sides = (key, row) => {
    const low = number(key, row, "low"), high = number(key, row, "high");
    return low === null || high === null ? null : [low, high];
  };
  const [x0, x1] = spread(points.flatMap((row) => [number(view.x, row), ...(sides(view.x, row) ?? [])]));
  const [y0, y1] = spread(points.flatMap((row) => [number(view.y, row), ...(sides(view.y, row) ?? [])]));
  const flip = sense(view.y, points[0]) < 0;
  const sx = (value) => edge.left + ((value - x0) / (x1 - x0)) * (W - edge.left - edge.right);
  const sy = (value) => { const share = (value - y0) / (y1 - y0); return edge.top + (flip ? share : 1 - share) * (H - edge.top - edge.bottom); };
  const svg = make("svg", { viewBox: `0 0 ${W} ${H}`, role: "group", "aria-label": `${Y.title} against ${X.title}, ${points.length} runs` });
  for (const tick of ticks(x0, x1)) svg.append(make("line", { class: "grid", x1: sx(tick), x2: sx(tick), y1: edge.top, y2: H - edge.bottom }), label(sx(tick), H - edge.bottom + 18, plain(tick, X), "middle"));
  for (const tick of ticks(y0, y1)) svg.append(make("line", { class: "grid", x1: edge.left, x2: W - edge.right, y1: sy(tick), y2: sy(tick) }), label(edge.left - 8, sy(tick) + 4, axisNumber(tick, Y), "end"));
  svg.append(make("line", { class: "axis", x1: edge.left, x2: W - edge.right, y1: H - edge.bottom, y2: H - edge.bottom }));
  svg.append(label(W - edge.right, H - 6, `${X.title}, ${X.unit} (${X.kind})${X.form === "ratio" ? " — less is better" : ""}`, "end", "name"));
  svg.append(label(edge.left + 6, edge.top + 12, `${Y.title}${flip ? ", less is better" : ""}${Y.form === "score" ? `: ${text("metric", points[0])}` : ""}`, "start", "name"));
  const dense = points.find((row) => rows.dense[row]);
  if (dense !== undefined) svg.append(make("line", { class: "dense", x1: edge.left, x2: W - edge.right, y1: sy(number(view.y, dense)), y2: sy(number(view.y, dense)) }), make("line", { class: "dense", x1: sx(number(view.x, dense)), x2: sx(number(view.x, dense)), y1: edge.top, y2: H - edge.bottom }));
  const kept = new Set(frontOf(points, view.x, view.y));
  const steps = staircase(points);
  if (steps.length > 1) {
    const path = steps.map((row, i) => i ? `H${sx(number(view.x, row))}V${sy(number(view.y, row))}` : `M${sx(number(view.x, row))} ${sy(number(view.y, row))}`).join("");
    svg.append(make("path", { class: "front", d: path }));
  }
  const inOrder = points.toSorted((a, b) => number(view.x, a) - number(view.x, b) || number(view.y, a) - number(view.y, b));
  inOrder.forEach((row, place) => svg.append(point(row, place, sx, sy, sides, kept.has(row), X, Y)));
  if (W > 560) svg.append(...names(inOrder.filter((row) => kept.has(row)), sx, sy, W - edge.right));
  return svg;
}

/** Names beside the points of the front, where there is room for them. */
function names(some, sx, sy, right) {
  const taken = [], written = [];
  for (const row of some) {
    const name = text("label", row).slice(0, 40), wide = name.length * 6.3, x = sx(number(view.x, row)), y = sy(number(view.y, row)) - 12;
    const left = x + wide + 8 > right, from = left ? x - wide - 8 : x + 8;
    if (from < 0 || taken.some(([a, b, c]) => from < b && a < from + wide && Math.abs(c - y) < 14)) continue;
    taken.push([from, from + wide, y]);
    const word = label(left ? x - 8 : x + 8, y, name, left ? "end" : "start", "beside");
    word.setAttribute("aria-hidden", "true");
    written.push(word);
  }
  return written;
}

const axisNumber = (tick, column) => (["score", "difference"].includes(column.form) ? Number(tick.toPrecision(6)).toString() : plain(tick, column));
const label = (x, y, words, anchor, kind = null) => make("text", { x, y, "text-anchor": anchor, class: kind }, words);

/** The front of the estimates alone: sorted by cost, each step strictly better. */
function staircase(points) {
  const steps = [];
  const score = (row) => number(view.y, row) * sense(view.y, row);
  for (const row of points.filter((row) => ranked(view.x, row)).sort((a, b) => number(view.x, a) - number(view.x, b) || score(b) - score(a))) {
    if (!steps.length || score(row) > score(steps.at(-1))) steps.push(row);
  }
  return steps;
}

function point(row, place, sx, sy, sides, kept, X, Y) {
  const x = sx(number(view.x, row)), y = sy(number(view.y, row)), family = familyOf(row);
  const across = sides(view.x, row), up = sides(view.y, row);
  const words = [text("label", row), `${Y.title} ${plain(number(view.y, row), Y)} ${range(view.y, row, Y)}`.trim(), `${X.title} ${plain(number(view.x, row), X)} ${range(view.x, row, X)}`.trim()];
  const mark = make("a:svg", { href: `runs/${rows.id[row]}.html`, class: `point f-${family}${kept ? " kept" : ""}`, tabindex: place ? -1 : 0, "aria-label": `${words.join(", ")}${kept ? ", on the front" : ""}` });
  if (up) mark.append(make("line", { class: "error", x1: x, x2: x, y1: sy(up[0]), y2: sy(up[1]) }));
  if (across) mark.append(make("line", { class: "error", x1: sx(across[0]), x2: sx(across[1]), y1: y, y2: y }));
  mark.append(make("circle", { class: "ring", cx: x, cy: y, r: 12 }), make("path", { d: SHAPES[family], transform: `translate(${x - 6.5} ${y - 6.5}) scale(.8125)` }));
  const show = () => tell(words, x, y);
  mark.addEventListener("pointerenter", show);
  mark.addEventListener("focus", show);
  for (const kind of ["pointerleave", "blur"]) mark.addEventListener(kind, () => { find("plot").querySelector(".tip").hidden = true; });
  return mark;
}

function tell(words, x, y) {
  const plot = find("plot"), tip = plot.querySelector(".tip"), svg = plot.querySelector("svg");
  const scale = svg.clientWidth / svg.viewBox.baseVal.width;
  tip.replaceChildren(make("strong", {}, words[0]), ...words.slice(1).map((each) => make("div", {}, each)));
  tip.hidden = false;
  tip.style.left = `${Math.min(Math.max(0, x * scale + 14), plot.clientWidth - tip.offsetWidth)}px`;
  tip.style.top = `${Math.max(0, y * scale - tip.offsetHeight - 12)}px`;
}

/** Arrow keys walk along the points; one of them is in the tab order. */
function walk(event) {
  const way = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  const points = [...find("plot").querySelectorAll(".point")], at = points.indexOf(document.activeElement);
  if (!way || at < 0) return;
  event.preventDefault();
  const next = points[Math.max(0, Math.min(points.length - 1, at + way))];
  for (const each of points) each.setAttribute("tabindex", each === next ? 0 : -1);
  next.focus();
}

// ---- controls ----------------------------------------------------------------------------------------------------

function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, name]) => make("option", { value }, name)));
  select.value = chosen;
}

function menu(name, words, entries) {
  const list = make("fieldset", {}, make("legend", {}, words), ...entries);
  return make("details", { class: "menu", name: "menus", "data-menu": name }, make("summary", { class: "pick" }, name === "cols" ? "Columns" : facets[name]), make("div", { class: name === "cols" ? "sheet right" : "sheet" }, list));
}

function tick(name, value, words, small, on, change) {
  const box = make("input", { type: "checkbox", "data-name": name, value });
  box.checked = on;
  box.addEventListener("change", () => change(box.checked));
  return make("label", {}, box, make("span", {}, words), make("small", {}, small));
}

function buildControls() {
  for (const name of Object.keys(facets)) {
    const values = [...new Set(ALL.map((row) => text(name, row)))].sort();
    for (const value of view[name]) if (!values.includes(value)) values.push(value);
    const entries = values.map((value) => tick(name, value, value || "(none)", "", view[name].has(value), (on) => { on ? view[name].add(value) : view[name].delete(value); view.rows = PAGE; draw(); }));
    find("facets").append(menu(name, `Show only ${facets[name].toLowerCase()}`, entries));
  }
  const entries = board.columns.map((column) => {
    const entry = tick("cols", column.key, column.title, `${column.unit}, ${column.kind}`, view.cols.includes(column.key), (on) => {
      view.cols = board.columns.map((each) => each.key).filter((key) => (key === column.key ? on : view.cols.includes(key)));
      draw();
    });
    entry.title = column.help;
    return entry;
  });
  find("columns").append(menu("cols", "Columns of the table", entries));
  const axes = board.columns.filter((column) => column.known).map((column) => [column.key, `${column.title}, ${column.unit}`]);
  fill(find("axis-x"), axes.filter(([key]) => ["ratio", "value"].includes(columns.get(key).form)), view.x);
  fill(find("axis-y"), axes, view.y);
  const ways = [["label", "Method"], ...board.columns.map((column) => [column.key, column.title])];
  fill(find("sort"), ways.flatMap(([key, name]) => key === "quality" || key === "difference" ? [[`-${key}`, `${name}, best first`], [key, `${name}, worst first`]] : [[key, `${name} ↑`], [`-${key}`, `${name} ↓`]]), view.sort);
}

function updateControls(found) {
  find("search").value = view.q;
  for (const name of Object.keys(facets)) {
    const counts = new Map();
    for (const row of ALL) if (passes(row, name)) counts.set(text(name, row), (counts.get(text(name, row)) ?? 0) + 1);
    const box = document.querySelector(`[data-menu="${name}"]`);
    for (const input of box.querySelectorAll("input")) {
      input.checked = view[name].has(input.value);
      input.closest("label").querySelector("small").textContent = counts.get(input.value) ?? 0;
    }
    box.querySelector("summary").replaceChildren(facets[name], ...(view[name].size ? [make("b", {}, `${view[name].size}`)] : []));
  }
  for (const input of document.querySelectorAll('[data-name="cols"]')) input.checked = view.cols.includes(input.value);
  find("sort").value = view.sort;
  find("axis-x").value = view.x;
  find("axis-y").value = view.y;
  find("one").checked = view.list === "one";
  find("clear").hidden = !view.q && Object.keys(facets).every((name) => !view[name].size);
  const apart = found.filter((row) => text("apart", row)).length;
  find("status").textContent = `${found.length} of ${ALL.length} runs${apart ? `, ${apart} of them apart` : ""}`;
}

// ---- taking the view along ---------------------------------------------------------------------------------------

function asRecords(found) {
  return found.map((row) => {
    const record = { id: rows.id[row], method: text("label", row) };
    for (const name of Object.keys(facets)) record[name === "method" ? "method_name" : name] = text(name, row);
    Object.assign(record, { settings: text("settings", row), metric: text("metric", row), documents: rows.documents[row], date: text("started", row), apart: text("apart", row) });
    for (const key of view.cols) {
      record[key] = number(key, row);
      for (const part of ["low", "high"]) if (numbers[key][part]) record[`${key}_${part}`] = number(key, row, part);
      if (noteOf(key, row)) record[`${key}_note`] = noteOf(key, row);
    }
    return record;
  });
}

/** Comma-separated values; a text that a spreadsheet would take for a formula gets an apostrophe before it. */
function asCsv(records) {
  const names = [...new Set(records.flatMap(Object.keys))];
  const field = (value) => {
    if (value === null || value === undefined) return "";
    const written = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : `${value}`;
    return /[",\n\r]/.test(written) ? `"${written.replaceAll('"', '""')}"` : written;
  };
  return [names, ...records.map((record) => names.map((name) => record[name]))].map((each) => each.map(field).join(",")).join("\r\n") + "\r\n";
}

function save(name, type, content) {
  const link = make("a", { href: URL.createObjectURL(new Blob([content], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// ---- all of it ---------------------------------------------------------------------------------------------------

function shown() {
  return ALL.filter((row) => passes(row));
}

function drawTables(found = shown()) {
  const comparable = found.filter((row) => !text("apart", row)), apart = found.filter((row) => text("apart", row));
  drawTable(find("board"), comparable, view.rows);
  find("apart").hidden = !apart.length;
  drawTable(find("apart-board"), apart, view.rows);
  find("more").hidden = Math.max(comparable.length, apart.length) <= view.rows;
  find("scroll").hidden = !comparable.length;
}

function draw() {
  const found = shown();
  drawTables(found);
  find("empty").hidden = found.length > 0;
  find("mixed").hidden = view.list !== "one";
  updateControls(found);
  drawChart(found);
  writeAddress();
}

function listen() {
  find("search").addEventListener("input", (event) => { view.q = event.target.value; view.rows = PAGE; draw(); });
  find("sort").addEventListener("change", (event) => { view.sort = event.target.value; draw(); });
  for (const axis of ["x", "y"]) find(`axis-${axis}`).addEventListener("change", (event) => { view[axis] = event.target.value; draw(); });
  find("chart-group").addEventListener("change", (event) => { view.chart = event.target.value; draw(); });
  find("one").addEventListener("change", (event) => { view.list = event.target.checked ? "one" : START.list; draw(); });
  find("clear").addEventListener("click", () => { view.q = ""; for (const name of Object.keys(facets)) view[name].clear(); draw(); find("search").focus(); });
  find("next").addEventListener("click", () => { view.rows += PAGE; draw(); });
  find("all").addEventListener("click", () => { view.rows = ALL.length; draw(); });
  find("csv").addEventListener("click", () => save("harness.csv", "text/csv", asCsv(asRecords(shown()))));
  find("json").addEventListener("click", () => save("harness.json", "application/json", JSON.stringify(asRecords(shown()), null, 1)));
  for (const table of [find("board"), find("apart-board")]) table.addEventListener("click", (event) => { const key = event.target.closest("[data-sort]")?.dataset.sort; if (key) sortBy(key); });
  find("plot").addEventListener("keydown", walk);
  document.addEventListener("click", (event) => { for (const each of document.querySelectorAll("details.menu[open]")) if (!each.contains(event.target)) each.open = false; });
  document.addEventListener("keydown", (event) => {
    const open = document.querySelector("details.menu[open]");
    if (event.key === "Escape" && open) { open.open = false; open.querySelector("summary").focus(); }
  });
  addEventListener("popstate", () => { view = readAddress(); draw(); });
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; drawChart(shown()); } });
}

buildControls();
listen();
draw();
document.documentElement.dataset.drawn = "yes";
