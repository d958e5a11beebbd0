// Numbers and times for people.

import { h } from "./dom.js";

/** A figure: counts as counts, the rest to four digits. */
export function figure(value) {
  if (value === null || value === undefined) return "";
  if (Number.isInteger(value) && Math.abs(value) < 1e12) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-4 || size >= 1e7) ? value.toExponential(3) : String(Number(value.toPrecision(4)));
}

/** The name of a metric as words. */
export const words = (name) => name.replaceAll("_", " ");

/** Seconds as `45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`. */
export function duration(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** The time left in the stage that a run is in. */
export function timeLeft(run) {
  return run.seconds_left === null ? "" : `about ${duration(run.seconds_left)}`;
}

/** A point in time, seconds since the epoch. */
export function moment(seconds) {
  if (!seconds) return "";
  const time = new Date(1000 * seconds);
  const text = time.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
  return h("time", { datetime: time.toISOString() }, text);
}

/** `12 of 100`, or what is known of it. */
export function steps(run) {
  if (!run.stage) return "";
  const done = run.step.toLocaleString("en");
  return run.total_steps ? `${done} of ${run.total_steps.toLocaleString("en")}` : done;
}

/** The state of a run or a replica, in its colour. */
export function stateBadge(state) {
  return h("span", { class: `badge state-${state.toLowerCase()}` }, words(state.toLowerCase()));
}
