// The curves of a run in the browser: those that the service told, and each step that has come since.

/** A point of a stage: the last, lowest and highest value of each figure among the steps that it stands for. */
function pointsOf({ steps, figures }) {
  return steps.map((step, place) => {
    const point = { step, last: {}, low: {}, high: {} };
    for (const [name, columns] of Object.entries(figures)) {
      if (columns.last[place] === null) continue;
      point.last[name] = columns.last[place];
      point.low[name] = (columns.low ?? columns.last)[place];
      point.high[name] = (columns.high ?? columns.last)[place];
    }
    return point;
  });
}

export class Curves {
  #stages = new Map();
  /** Steps that came since; the service shortens curves, the browser does not. */
  added = 0;

  /** @param {Object} told curves by stage. */
  constructor(told) {
    for (const [stage, curves] of Object.entries(told)) {
      this.#stages.set(stage, { width: curves.width, points: pointsOf(curves) });
    }
  }

  /** Whether a stage has done steps that are known. */
  has(stage) {
    return this.#stages.has(stage);
  }

  /** Steps that a point of a stage stands for. */
  width(stage) {
    return this.#stages.get(stage).width;
  }

  /** Adds a step; one that is done again after a resume replaces what it was. */
  add(stage, step, figures) {
    const { points } = this.#stages.get(stage);
    const point = { step, last: figures, low: figures, high: figures };
    let place = points.length;
    while (place > 0 && points[place - 1].step >= step) place -= 1;
    points.splice(place, points[place]?.step === step ? 1 : 0, point);
    this.added += 1;
  }

  /** Lines of a plot: `{figure, points: [{x, y, low, high, step}]}`, in the order of x. */
  lines(plot) {
    const points = this.#stages.get(plot.stage)?.points ?? [];
    const lines = plot.figures.map((figure) => ({ figure, points: lineOf(points, figure, plot.root_of) }));
    const drawn = lines.filter((line) => line.points.length > 1);
    return plot.root_of && drawn.length < lines.length ? [] : drawn;
  }
}

function lineOf(points, figure, rootOf) {
  if (!rootOf) {
    return points
      .filter(({ last }) => figure in last)
      .map(({ step, last, low, high }) => ({ x: step, y: last[figure], low: low[figure], high: high[figure], step }));
  }
  return points
    .filter(({ last }) => figure in last && rootOf in last)
    .map(({ step, last }) => {
      const y = last[figure];
      return { x: Math.sqrt(Math.max(last[rootOf], 0)), y, low: y, high: y, step };
    })
    .sort((one, other) => one.x - other.x || one.y - other.y);
}
