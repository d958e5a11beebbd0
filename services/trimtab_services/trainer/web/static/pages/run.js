// One run: how it is, its curves, and what it told, as it goes on.

import { announce } from "../announce.js";
import { get } from "../api.js";
import { Chart } from "../chart.js";
import { Curves } from "../curves.js";
import { fill, h } from "../dom.js";
import { duration, figure, moment, stateBadge, steps, timeLeft, words } from "../format.js";
import { LiveRun } from "../live.js";
import { OutputSection, specSection } from "./run_files.js";
import { LogSection } from "./run_log.js";
import { ReplicasSection } from "./run_replicas.js";
import { RolloutsSection } from "./run_rollouts.js";
import { SamplesSection } from "./run_samples.js";
import { VersionsSection } from "./run_versions.js";

/** After so many steps the curves are asked for again: the service makes long ones short. */
const MOST_ADDED = 400;
const TICK_MS = 1000;

export async function runPage(place, name) {
  const page = new RunPage(name);
  try {
    await page.load();
  } catch (error) {
    page.close();
    throw error;
  }
  fill(place, page.element);
  return () => page.close();
}

const pathOf = (name) => `runs/${encodeURIComponent(name)}`;

class RunPage {
  #name;
  #run;
  #queue;
  #toldAt = 0;
  #live = null;
  #curves;
  #plots = [];
  #charts = [];
  #isDrawing = false;
  #isLoading = false;
  #isClosed = false;
  #ticker;
  #head = h("div", { class: "row" });
  #error = h("p", { class: "notice error run-error" });
  #facts = h("dl", { class: "facts" });
  #plotsBox = h("div", { class: "plots" });
  #noPlots = h("p", { class: "hint" }, "There are no curves yet: they begin with the second step of a stage.");
  #replicas = new ReplicasSection();
  #log;
  #versions;
  #rollouts;
  #samples;
  #output;
  element;

  constructor(name) {
    this.#name = name;
    this.#log = new LogSection(pathOf(name));
    this.#versions = new VersionsSection(pathOf(name));
  }

  async load() {
    const told = await get(pathOf(this.#name));
    const path = pathOf(this.#name);
    this.#rollouts = new RolloutsSection(path, told.rollouts);
    this.#samples = new SamplesSection(path);
    this.#output = new OutputSection(path, () => this.#run.has_ended);
    await Promise.all([this.#log.load(told.warnings), this.#samples.load()]);
    this.element = h(
      "div",
      {},
      this.#head,
      this.#error,
      h("section", { class: "card", "aria-label": "State" }, this.#facts),
      this.#replicas.element,
      h("section", { class: "curves" }, h("h2", {}, "Curves"), this.#noPlots, this.#plotsBox),
      this.#log.element,
      this.#versions.element,
      this.#rollouts.element,
      this.#samples.element,
      this.#output.element,
      specSection(told),
    );
    this.#versions.count(told.versions, told.newest_version);
    this.#take(told);
    this.#ticker = setInterval(() => this.#tick(), TICK_MS);
  }

  close() {
    this.#isClosed = true;
    clearInterval(this.#ticker);
    this.#live?.close();
    this.#samples?.close();
    this.#output?.close();
    for (const chart of this.#charts) chart.close();
  }

  /** Shows all that the service told, and follows the run from there. */
  #take(told) {
    this.#queue = told.queue;
    this.#curves = new Curves(told.curves);
    this.#showPlots(told.plots);
    this.#showRun(told.run);
    this.#live?.close();
    this.#live = new LiveRun(this.#name, told.sequence, {
      run: (run) => this.#showRun(run),
      events: (events) => this.#add(events),
      behind: () => this.#loadAgain(),
    });
  }

  async #loadAgain() {
    if (this.#isLoading) return;
    this.#isLoading = true;
    try {
      const told = await get(pathOf(this.#name));
      if (this.#isClosed) return;
      this.#take(told);
      this.#versions.count(told.versions, told.newest_version);
      await this.#log.load(told.warnings);
      if (told.rollouts) await this.#rollouts.renew();
    } finally {
      this.#isLoading = false;
    }
  }

  #add(events) {
    let isNewStage = false;
    if (events.some((event) => event.rollouts)) this.#rollouts.renew();
    for (const event of events) {
      if (event.log) this.#log.add(event.log);
      if (event.version) this.#versions.add(event);
      if ("queue" in event) this.#queue = event.queue;
      if (!event.figures) continue;
      if (this.#curves.has(event.stage)) this.#curves.add(event.stage, event.step, event.figures);
      else isNewStage = true;
    }
    if (isNewStage || this.#curves.added > MOST_ADDED) this.#loadAgain();
    else this.#drawSoon();
    this.#showFacts();
  }

  #showRun(run) {
    const before = this.#run?.state;
    this.#run = run;
    this.#toldAt = performance.now();
    this.#replicas.show(run);
    if (run.has_ended) this.#queue = null;
    if (before === run.state && this.#head.childNodes.length > 0) return this.#showFacts();
    fill(this.#head, h("h1", { tabindex: "-1" }, run.name), stateBadge(run.state));
    fill(this.#error, run.error);
    this.#error.hidden = !run.error;
    if (before && before !== run.state) announce(`Run ${run.name} is ${run.state.toLowerCase()}.`);
    this.#showFacts();
  }

  #tick() {
    this.#showFacts();
    this.#replicas.tick();
  }

  #showFacts() {
    const run = this.#run;
    const since = (performance.now() - this.#toldAt) / 1000;
    const left = run.seconds_left === null ? run : { ...run, seconds_left: Math.max(0, run.seconds_left - since) };
    const facts = [
      ["Stage", words(run.stage)],
      ["Step", steps(run)],
      [`Left in ${words(run.stage)}`, timeLeft(left)],
      ["A step takes", run.seconds_a_step === null ? "" : paceOf(run.seconds_a_step)],
      ["Rollouts waiting", this.#queue && figure(this.#queue.waiting)],
      ["Being generated", this.#queue && figure(this.#queue.running)],
      ["Replicas in use", this.#queue && figure(this.#queue.replicas)],
      ["Problems", this.#log.warnings ? figure(this.#log.warnings) : ""],
      ["Started", moment(run.create_time)],
      [run.has_ended ? "Ended" : "Last heard of", moment(run.update_time)],
    ].filter(([, value]) => value !== "" && value !== null);
    const bar =
      !run.has_ended && run.total_steps
        ? h("progress", { max: run.total_steps, value: run.step, "aria-label": `Steps of ${words(run.stage)}` })
        : null;
    fill(
      this.#facts,
      facts.map(([name, value]) =>
        h("div", {}, h("dt", {}, name), h("dd", {}, value, name === "Step" ? bar : null)),
      ),
    );
  }

  #showPlots(plots) {
    if (JSON.stringify(plots) !== JSON.stringify(this.#plots)) {
      for (const chart of this.#charts) chart.close();
      this.#plots = plots;
      this.#charts = plots.map((plot) => new Chart(plot));
      fill(this.#plotsBox, this.#charts.map((chart) => chart.element));
    }
    this.#draw();
  }

  /** Once for all that came since the browser drew last. */
  #drawSoon() {
    if (this.#isDrawing) return;
    this.#isDrawing = true;
    requestAnimationFrame(() => {
      this.#isDrawing = false;
      if (!this.#isClosed) this.#draw();
    });
  }

  #draw() {
    let drawn = 0;
    this.#plots.forEach((plot, index) => {
      const lines = this.#curves.lines(plot);
      drawn += lines.length;
      this.#charts[index].draw(lines, this.#curves.width(plot.stage));
    });
    this.#noPlots.hidden = drawn > 0;
  }
}

const paceOf = (seconds) => (seconds < 10 ? `${Number(seconds.toPrecision(2))} s` : duration(seconds));
