// The Pareto front: harness.results.stats.pareto once more. Filters and axes choose its points while the page is read,
// so that it cannot be worked out when the site is built.

/** Whether two values differ by more than chance: each lies outside the other's interval; exact ones, at all. */
function differ(a, aroundA, b, aroundB, kind) {
  if (!aroundA || !aroundB) return a !== b && !["measured", "estimated"].includes(kind);
  return (aroundA[1] < b && a < aroundB[0]) || (aroundB[1] < a && b < aroundA[0]);
}

/** Whether two rows differ in a column by more than chance. */
const differAt = (key, a, b) =>
  differ(number(key, a), knownWithin(key, a), number(key, b), knownWithin(key, b), columns.get(key).kind);

/** Whether the first point is no worse in both, and in one better by more than chance. */
function dominates(first, second) {
  if (first.cost > second.cost || first.quality < second.quality) return false;
  return (
    differ(first.cost, first.costInterval, second.cost, second.costInterval, first.costKind) ||
    differ(first.quality, first.qualityInterval, second.quality, second.qualityInterval, first.qualityKind)
  );
}

/** Indices of the points {cost, quality, and the Interval and Kind of each} that no other dominates, by rising cost. */
function front(points) {
  return points
    .map((_, index) => index)
    .filter((index) => !points.some((rival) => dominates(rival, points[index])))
    .sort((a, b) => points[a].cost - points[b].cost);
}
