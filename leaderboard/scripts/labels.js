// Names beside points, where they meet neither each other nor a point: as many as there is room for.

const NAME_FONT = 11.5; // pixels
const NAME_HEIGHT = 14;
const ruler = document.createElement("canvas").getContext("2d");

function widthOf(words, font) {
  ruler.font = `${font} ${getComputedStyle(document.body).fontFamily}`;
  return ruler.measureText(words).width;
}

const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;

/** Where a name of this width may stand beside a point, the usual place first; y is the line that letters stand on. */
function places([x, y], width) {
  const sides = [8, 14].flatMap((across) => [-12, 20, 4, -26, 34].map((down) => [across, down]));
  return sides
    .filter(([across, down]) => down !== 4 || across > 8)
    .flatMap(([across, down]) => [
      { anchor: "start", left: x + across, line: y + down },
      { anchor: "end", left: x - across - width, line: y + down },
    ])
    .map(({ anchor, left, line }) => ({
      anchor,
      line,
      ...{ left, right: left + width, top: line - NAME_HEIGHT + 3, bottom: line + 3 },
    }));
}

/** The names of these rows as texts; `points` are all that are drawn, `taken` are boxes of other words. */
function names(members, points, frame, taken) {
  const longest = frame.right - frame.left > 500 ? 40 : 24; // letters
  const marks = points.map(frame.at).map(([x, y]) => ({ left: x - 8, right: x + 8, top: y - 8, bottom: y + 8 }));
  const boxes = [...taken, ...marks];
  const words = [];
  for (const row of members) {
    const whole = text("label", row);
    const name = whole.length > longest ? `${whole.slice(0, longest - 1)}…` : whole;
    const place = places(frame.at(row), widthOf(name, `${NAME_FONT}px`)).find(
      (box) =>
        box.left > frame.left &&
        box.right < frame.right &&
        box.top > frame.top &&
        box.bottom < frame.bottom &&
        !boxes.some((other) => meet(box, other)),
    );
    if (!place) continue;
    boxes.push(place);
    const label = word(place.anchor === "start" ? place.left : place.right, place.line, name, place.anchor, "beside");
    label.setAttribute("aria-hidden", "true");
    words.push(label);
  }
  return words;
}
