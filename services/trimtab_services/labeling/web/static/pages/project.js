// A project: what its labelers should know, and the way to its tasks.

import { get, path, session } from "../api.js";
import { counted, fill, h } from "../dom.js";
import { markdown } from "../markdown.js";
import { KIND_NAMES } from "../tasks/texts.js";
import { notPassedText, qualificationText } from "./projects.js";

export async function projectPage(main, name) {
  const project = await get(`projects/${path(name)}`);
  const link = (page, text, kind = "button") => h("a", { class: kind, href: `#/projects/${path(name)}/${page}` }, text);
  const role = session.account.role;
  const isBarred = project.mine.qualification.passed === false;
  fill(
    main,
    h("h1", { tabindex: "-1" }, name),
    h(
      "p",
      {},
      KIND_NAMES[project.kind],
      project.state !== "open" && h("span", { class: "badge" }, `${project.state}: gives out no tasks`),
    ),
    h(
      "p",
      { class: "hint" },
      `You: ${counted(project.mine.labels, "label")}, ${project.mine.skips} skipped`,
      qualificationText(project),
    ),
    isBarred && h("p", { class: "card problem" }, notPassedText(project)),
    h(
      "p",
      { class: "row" },
      !isBarred && link("work", project.mine.labels ? "Continue" : "Start", "button primary"),
      link("mine", "My labels"),
      role !== "labeler" && link("review", "Agreement"),
      role !== "labeler" && link("labels", "All labels"),
      role === "admin" && link("settings", "Settings"),
    ),
    h(
      "section",
      { class: "card instructions", "aria-labelledby": "instructions-title" },
      h("h2", { id: "instructions-title" }, "Instructions"),
      project.instructions_tree.length
        ? markdown(project.instructions_tree)
        : h("p", { class: "hint" }, "This project has none."),
    ),
  );
}
