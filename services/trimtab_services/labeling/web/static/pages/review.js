// For reviewers: how far a project is, and how its labelers agree.

import { get, path, post } from "../api.js";
import { ask } from "../dialogs.js";
import { fill, h } from "../dom.js";
import { notice } from "../notices.js";
import { table } from "./lists.js";

export async function reviewPage(main, name) {
  const where = `projects/${path(name)}`;
  const [progress, report] = await Promise.all([get(`${where}/progress`), get(`${where}/agreement`)]);
  const retry = (one) =>
    one.passed === false &&
    h(
      "button",
      { type: "button", onClick: () => letTryAgain(main, name, one.labeler) },
      `Let ${one.labeler} try again`,
    );
  const failed = report.labelers.map(retry).filter(Boolean);
  fill(
    main,
    h("h1", { tabindex: "-1" }, `Agreement: ${name}`),
    h(
      "p",
      { class: "row" },
      h("a", { href: `#/${where}` }, "Project"),
      h("a", { href: `#/${where}/labels` }, "All labels"),
    ),
    progressCard(progress),
    h(
      "section",
      { class: "card" },
      h("h2", {}, "Overall"),
      h("p", {}, "How often two labelers order two answers alike: ", share(report.agreement)),
      h("p", { class: "hint" }, "Intervals are of 95 %, over tasks. Pairs that either of them ties do not count."),
    ),
    report.labelers.length > 0 &&
      table(
        "Labelers",
        ["Labeler", "Group", "Labels", "Skipped", "With others", "With gold", "Median time"],
        report.labelers.map(labeler),
      ),
    failed.length > 0 &&
      h(
        "section",
        { class: "card" },
        h("h2", {}, "Qualification not passed"),
        h("p", {}, "Who tries again gets the same tasks; the labels of the first try go to the audit."),
        h("p", { class: "row" }, failed),
      ),
    report.pairs.length > 0 &&
      table("Pairs of labelers", ["Pair", "Agreement", "Tasks", "Kendall’s tau-b"], report.pairs.map(pair)),
  );
}

async function letTryAgain(main, name, labeler) {
  const answer = await ask(
    `Let ${labeler} try again?`,
    h("p", {}, `${labeler} gets the same tasks anew; the labels of the first try go to the audit.`),
    [
      ["Cancel", "cancel", "quiet"],
      ["Let try again", "retry", "primary"],
    ],
  );
  if (answer !== "retry") return;
  try {
    await post(`projects/${path(name)}/qualification/${path(labeler)}`);
    await reviewPage(main, name);
    main.querySelector("h1").focus();
    notice("qualification", `${labeler} gets the qualification tasks again.`, { kind: "good", canClose: true });
  } catch (error) {
    notice("qualification", `It did not work: ${error.message}`, { kind: "error", canClose: true });
  }
}

function progressCard(progress) {
  const { tasks, finished_tasks, labels, held_out_labels, leased_tasks, qualification_tasks, withdrawn_tasks } =
    progress;
  const facts = {
    "Tasks finished": `${finished_tasks} of ${tasks}`,
    Labels: held_out_labels ? `${labels}, ${held_out_labels} of them held out` : labels,
    "In work now": leased_tasks,
    "Qualification tasks": qualification_tasks,
    ...(withdrawn_tasks ? { "Withdrawn tasks": withdrawn_tasks } : {}),
  };
  return h(
    "section",
    { class: "card", "aria-labelledby": "progress-title" },
    h("h2", { id: "progress-title" }, "Progress"),
    h("progress", { max: Math.max(tasks, 1), value: finished_tasks, "aria-labelledby": "progress-title" }),
    h(
      "dl",
      { class: "facts" },
      Object.entries(facts).map(([fact, value]) => h("div", {}, h("dt", {}, fact), h("dd", {}, value))),
    ),
  );
}

function labeler(one) {
  return [
    one.labeler,
    one.group || "–",
    one.labels,
    one.skips,
    share(one.agreement),
    share(one.gold),
    one.labels ? duration(one.median_ms) : "–",
  ];
}

function pair(one) {
  return [
    `${one.labeler_a} and ${one.labeler_b}`,
    share(one.agreement),
    one.agreement.tasks,
    one.tau_tasks ? one.tau.toFixed(2) : "–",
  ];
}

/** A share with its interval, in words and as a bar. */
function share({ value, low, high, count }) {
  if (!count) return "–";
  const percent = (number) => (100 * number).toFixed(0);
  const range = h("span", { class: "range" });
  const point = h("span", { class: "point" });
  Object.assign(range.style, { left: `${100 * low}%`, width: `${100 * (high - low)}%` });
  point.style.left = `${100 * value}%`;
  return h(
    "span",
    { class: "share" },
    h(
      "span",
      {},
      `${percent(value)} % `,
      h("span", { class: "hint" }, `(${percent(low)}–${percent(high)}; ${count.toLocaleString("en")} pairs)`),
    ),
    h("span", { class: "scale", "aria-hidden": "true" }, range, point),
  );
}

function duration(ms) {
  const seconds = Math.round(ms / 1000);
  return seconds < 60 ? `${seconds} s` : `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
}
