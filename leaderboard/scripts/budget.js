// A budget: the most that a run may cost on the chart's axis, and the best quality within it.

const NO_BUDGET = 1.5; // times dense, where the slider's end means that everything fits

/** What "best" is said of: the chart's score, or the quality where the chart shows two costs. */
const judgedKey = () => (isCost(columns.get(view.y)) ? "quality" : view.y);
const goodness = (row) => number(judgedKey(), row) * sense(judgedKey(), row);

const isWithin = (row) => isRanked(view.x, row) && number(view.x, row) !== null && number(view.x, row) <= view.budget;

/** The runs of a group that fit the budget, the best first and the cheaper of two equals; none without a budget. */
function withinBudget(members) {
  if (view.budget === null) return [];
  return members
    .filter((row) => !isApart(row) && number(judgedKey(), row) !== null && isWithin(row))
    .sort((a, b) => goodness(b) - goodness(a) || number(view.x, a) - number(view.x, b));
}

/** The slider's ends and step for the runs that are drawn: times dense, or the values that there are. */
function budgetScale(points) {
  if (columns.get(view.x).form === "ratio") return { min: 0.05, max: NO_BUDGET, step: 0.01 };
  const costs = points.map((row) => number(view.x, row));
  const [min, max] = [Math.min(...costs), Math.max(...costs)];
  return { min, max, step: (max - min) / 100 || 1 };
}

/** What the slider's place means: a number of four digits, or nothing at its end. */
function budgetOf({ value, max }) {
  return Number(value) >= Number(max) ? null : Number(Number(value).toPrecision(4));
}

const budgetText = () => (view.budget === null ? "any" : written(view.budget, columns.get(view.x)));

function drawBudget(points) {
  const slider = find("budget");
  const words = budgetText();
  Object.assign(slider, points.length ? budgetScale(points) : {});
  slider.disabled = !points.length;
  slider.value = view.budget ?? slider.max;
  slider.setAttribute("aria-valuetext", view.budget === null ? "no limit" : words);
  find("budget-text").textContent = words;
  find("budget-title").textContent = `${columns.get(judgedKey()).title} with ${columns.get(view.x).title} at most`;
  find("within").replaceChildren(...verdict(withinBudget(points)));
}

/** Which run is best within the budget, and how surely. */
function verdict([best, ...rest]) {
  if (view.budget === null) return [];
  const [cost, judged] = [columns.get(view.x), columns.get(judgedKey())];
  if (best === undefined)
    return [make("strong", {}, "None"), ` that may be ranked has ${cost.title} of at most ${budgetText()}.`];
  const about = (column) => `${column.title} ${written(number(column.key, best), column)}`;
  const high = intervalOf(view.x, best)?.[1];
  const doubt = high > view.budget ? `, whose interval reaches ${written(high, cost)}` : "";
  const saving = text("saving", best) === "simulated" ? "; its saving is simulated" : "";
  const ties = rest.filter((row) => !differAt(judgedKey(), best, row)).map((row) => text("label", row));
  const named = ties.length > 3 ? `${ties.slice(0, 3).join(", ")} and ${ties.length - 3} more` : ties.join(", ");
  return [
    make("strong", {}, make("a", { href: `runs/${rows.id[best]}.html` }, text("label", best))),
    `: ${about(judged)}, ${about(cost)}${doubt}${saving}.`,
    ties.length ? ` Not surely better than ${named}.` : "",
  ];
}
