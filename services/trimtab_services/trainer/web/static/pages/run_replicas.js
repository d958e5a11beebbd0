// The replicas that a run works with, as the run told of them last.

import { fill, h } from "../dom.js";
import { duration, figure, stateBadge } from "../format.js";
import { folded } from "./folded.js";
import { cell, row, rowHead, shortCell, stackedTable } from "./stacked.js";

/** A run tells every few seconds. */
const LATE_S = 30;
const HEADS = ["Service", "Address", "State", "Version", "Lag", "Waiting", "Running", "Calls of this run", "Last answer"];

export class ReplicasSection {
  #count = h("span", { class: "badge" });
  #age = h("p", { class: "hint" });
  #table = stackedTable("Replicas", HEADS);
  #replicas = [];
  #ages = []; // the cells of the last answers
  #time = null;
  #toldAt = 0;
  element = folded(["Replicas ", this.#count], async (place) => fill(place, this.#age, this.#table.element));

  /** Shows those of a run; without any there is nothing to show. */
  show({ replicas, replicas_time, replicas_seconds_ago }) {
    this.element.hidden = replicas === null;
    if (replicas === null || replicas_time === this.#time) return;
    this.#time = replicas_time;
    this.#toldAt = performance.now() - 1000 * replicas_seconds_ago;
    this.#replicas = replicas;
    const serving = replicas.filter((one) => one.state === "SERVING").length;
    fill(this.#count, `${figure(serving)} of ${figure(replicas.length)} serving`);
    this.#count.classList.toggle("state-warning", serving < replicas.length);
    this.#ages = replicas.map(() => cell("Last answer"));
    fill(this.#table.body, replicas.map((one, index) => replicaRow(one, this.#ages[index])));
    this.tick();
  }

  /** Time has gone by. */
  tick() {
    if (this.element.hidden) return;
    const since = (performance.now() - this.#toldAt) / 1000;
    const isLate = since > LATE_S;
    fill(this.#age, isLate ? `The run has told nothing of them for ${duration(since)}.` : `As the run told ${duration(since)} ago.`);
    this.#age.className = isLate ? "note" : "hint";
    this.#replicas.forEach(({ seconds_since_answer }, index) => {
      const seconds = seconds_since_answer === null ? null : seconds_since_answer + since;
      fill(this.#ages[index], seconds === null ? "never" : `${duration(seconds)} ago`);
    });
  }
}

function replicaRow(one, age) {
  const values = [one.version || null, one.lag, one.waiting, one.running, one.calls];
  return row(
    rowHead(one.service),
    cell("Address", one.address, one.note && h("p", { class: "note" }, one.note)),
    cell("State", stateBadge(one.state)),
    values.map((value, index) => shortCell(HEADS[index + 3], figure(value))),
    age,
  );
}
