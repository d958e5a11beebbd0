// A plot: lines over one x axis as SVG. The legend has the values at the place that the pointer or the keys point to.

import { fill, h } from "./dom.js";
import { figure as short, words } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 210;
const MARGIN = { left: 54, right: 10, top: 8, bottom: 36 };
const LEAST_WIDTH = 200;
/** A label so near to the right end does not stand under the middle of its tick, but ends there. */
const END_ROOM = 20;

export class Chart {
  #plot;
  #lines = [];
  #chosen = null; // an x; null follows the newest
  #svg = s("svg", { "aria-hidden": "true", height: HEIGHT });
  #legend = h("ul", { class: "legend" });
  #field;
  #hint = h("span", { class: "hint" });
  #width = LEAST_WIDTH;
  #observer = new ResizeObserver(([entry]) => this.#resize(entry.contentRect.width));

  /** @param {{title: string, x_label: string}} plot what it shows. */
  constructor(plot) {
    this.#plot = plot;
    this.#field = h(
      "div",
      {
        class: "plot-field",
        role: "slider",
        tabindex: "0",
        "aria-label": plot.title,
        onKeydown: (event) => this.#onKey(event),
        onPointermove: (event) => this.#onPointer(event),
        onPointerdown: (event) => this.#onPointer(event),
        onPointerleave: () => this.#choose(null),
        onBlur: () => this.#choose(null),
      },
      this.#svg,
    );
    this.element = h(
      "figure",
      { class: "plot card" },
      h("figcaption", {}, h("h3", {}, plot.title), this.#hint),
      this.#legend,
      this.#field,
    );
    this.#observer.observe(this.#field);
  }

  /** Draws lines in place of those before; hidden while there are none. */
  draw(lines, width) {
    this.#lines = lines;
    this.element.hidden = lines.length === 0;
    const wide = `${width.toLocaleString("en")} steps a point; the band: from lowest to highest`;
    fill(this.#hint, width > 1 && !this.#plot.root_of ? wide : "");
    this.#show();
  }

  close() {
    this.#observer.disconnect();
  }

  #resize(width) {
    if (Math.abs(width - this.#width) < 1 || width < 1) return;
    this.#width = Math.max(LEAST_WIDTH, Math.floor(width));
    this.#show();
  }

  #show() {
    if (this.#lines.length === 0) return;
    const frame = new Frame(this.#lines, this.#width);
    const at = this.#chosen ?? frame.xs.at(-1);
    const values = this.#lines.map((line) => nearest(line.points, at));
    this.#svg.setAttribute("viewBox", `0 0 ${this.#width} ${HEIGHT}`);
    this.#svg.setAttribute("width", this.#width);
    this.#svg.replaceChildren(
      ...frame.axes(this.#plot.x_label),
      ...this.#lines.flatMap((line, index) => frame.line(line.points, index)),
      ...(this.#chosen === null ? [] : frame.cursor(at, values)),
    );
    this.#tell(frame, at, values);
  }

  #tell(frame, at, values) {
    const place = this.#plot.root_of ? `root of the KL ${short(at)}` : `step ${short(at)}`;
    const said = this.#lines.map(({ figure }, index) => `${words(figure)} ${short(values[index].y)}`);
    fill(
      this.#legend,
      this.#lines.map(({ figure }, index) =>
        h("li", {}, swatch(index), words(figure), " ", h("b", {}, short(values[index].y))),
      ),
      h("li", { class: "at" }, place),
    );
    this.#field.setAttribute("aria-valuemin", 0);
    this.#field.setAttribute("aria-valuemax", frame.xs.length - 1);
    this.#field.setAttribute("aria-valuenow", Math.max(0, frame.xs.indexOf(at)));
    this.#field.setAttribute("aria-valuetext", `${place}: ${said.join(", ")}`);
  }

  #choose(x) {
    if (x === this.#chosen) return;
    this.#chosen = x;
    this.#show();
  }

  #onPointer(event) {
    const frame = new Frame(this.#lines, this.#width);
    const x = frame.xAt(event.clientX - this.#field.getBoundingClientRect().left);
    this.#choose(nearest(frame.xs.map((one) => ({ x: one })), x).x);
  }

  #onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { xs } = new Frame(this.#lines, this.#width);
    const place = xs.indexOf(this.#chosen ?? xs.at(-1));
    const far = Math.max(1, Math.round(xs.length / 10));
    const places = {
      ArrowLeft: place - 1,
      ArrowDown: place - 1,
      ArrowRight: place + 1,
      ArrowUp: place + 1,
      PageDown: place - far,
      PageUp: place + far,
      Home: 0,
      End: xs.length - 1,
    };
    if (event.key === "Escape") this.#choose(null);
    else if (event.key in places) this.#choose(xs[Math.min(xs.length - 1, Math.max(0, places[event.key]))]);
    else return;
    event.preventDefault();
  }
}

/** Where values lie in the picture. */
class Frame {
  constructor(lines, width) {
    const points = lines.flatMap((line) => line.points);
    this.width = width;
    this.xs = [...new Set(points.map((point) => point.x))].sort((one, other) => one - other);
    [this.left, this.right] = widened(this.xs[0], this.xs.at(-1), 0);
    const low = points.reduce((least, point) => Math.min(least, point.low), Infinity);
    const high = points.reduce((most, point) => Math.max(most, point.high), -Infinity);
    [this.low, this.high] = widened(low, high, 0.04);
  }

  x(value) {
    const span = this.width - MARGIN.left - MARGIN.right;
    return MARGIN.left + (span * (value - this.left)) / (this.right - this.left);
  }

  y(value) {
    const span = HEIGHT - MARGIN.top - MARGIN.bottom;
    return MARGIN.top + (span * (this.high - value)) / (this.high - this.low);
  }

  xAt(pixels) {
    const span = this.width - MARGIN.left - MARGIN.right;
    return this.left + ((pixels - MARGIN.left) / span) * (this.right - this.left);
  }

  axes(label) {
    const bottom = HEIGHT - MARGIN.bottom;
    const end = this.width - MARGIN.right;
    const rows = ticks(this.low, this.high, 5).flatMap((value) => [
      s("path", { class: "grid", d: `M${MARGIN.left} ${round(this.y(value))}H${end}` }),
      text(MARGIN.left - 6, this.y(value) + 4, tickText(value), "end"),
    ]);
    const columns = ticks(this.left, this.right, Math.max(2, Math.floor(this.width / 90))).map((value) => {
      const isAtEnd = this.x(value) > end - END_ROOM;
      return text(isAtEnd ? end : this.x(value), bottom + 16, tickText(value), isAtEnd ? "end" : "middle");
    });
    const middle = (MARGIN.left + end) / 2;
    return [
      ...rows,
      ...columns,
      s("path", { class: "axis", d: `M${MARGIN.left} ${bottom}H${end}` }),
      text(middle, HEIGHT - 4, label, "middle"),
    ];
  }

  line(points, index) {
    const path = points.map(({ x, y }, place) => `${place ? "L" : "M"}${round(this.x(x))} ${round(this.y(y))}`).join("");
    const line = s("path", { class: `line line-${index}`, d: path });
    if (points.every(({ low, high }) => low === high)) return [line];
    const above = points.map(({ x, high }) => `${round(this.x(x))} ${round(this.y(high))}`);
    const below = points.map(({ x, low }) => `${round(this.x(x))} ${round(this.y(low))}`).reverse();
    return [s("path", { class: `band band-${index}`, d: `M${[...above, ...below].join("L")}Z` }), line];
  }

  cursor(at, values) {
    return [
      s("path", { class: "cursor", d: `M${round(this.x(at))} ${MARGIN.top}V${HEIGHT - MARGIN.bottom}` }),
      ...values.map(({ x, y }, index) =>
        s("circle", { class: `dot dot-${index}`, cx: round(this.x(x)), cy: round(this.y(y)), r: 3.5 }),
      ),
    ];
  }
}

function s(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function text(x, y, content, anchor) {
  const element = s("text", { x: round(x), y: round(y), "text-anchor": anchor });
  element.textContent = content;
  return element;
}

function swatch(index) {
  const picture = s("svg", { class: "swatch", viewBox: "0 0 22 8", width: 22, height: 8, "aria-hidden": "true" });
  picture.append(s("path", { class: `line line-${index}`, d: "M0 4H22" }));
  return picture;
}

const round = (pixels) => Math.round(10 * pixels) / 10;

/** The value of a tick, which is a round number: short enough for the margin. */
function tickText(value) {
  const exact = Number(value.toPrecision(10));
  const size = Math.abs(exact);
  return size >= 1e5 || (size < 1e-3 && size > 0) ? exact.toExponential().replace("e+", "e") : short(exact);
}

/** A range with room around it, and never empty. */
function widened(low, high, share) {
  if (low === high) {
    const room = Math.abs(low) * 0.1 || 1;
    return [low - room, high + room];
  }
  return [low - share * (high - low), high + share * (high - low)];
}

/** Round numbers in a range, about `most` of them. */
function ticks(low, high, most) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const found = [];
  for (let number = Math.ceil(low / step); number * step <= high; number += 1) found.push(number * step);
  return found;
}

/** The point with the nearest x. */
function nearest(points, x) {
  return points.reduce((best, point) => (Math.abs(point.x - x) < Math.abs(best.x - x) ? point : best));
}
