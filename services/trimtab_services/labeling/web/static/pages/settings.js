// For admins: a new project, and what can be changed of one.

import { get, path, post } from "../api.js";
import { field, fill, h } from "../dom.js";
import { KIND_NAMES } from "../tasks/texts.js";
import { check, form, select } from "./forms.js";

const MINUTE_MS = 60000;
const DEFAULTS = {
  instructions: "",
  overlap: 1,
  lease_ms: 30 * MINUTE_MS,
  undo_ms: 10 * MINUTE_MS,
  qualification_pass: 0,
  state: "open",
  held_out_group: "heldout",
  held_out_overlap: 0,
};
const STATES = [
  ["open", "Tasks are given out"],
  ["closed", "No tasks are given out"],
  ["archived", "Archived: as closed, and not in the labelers’ list"],
];

export function newProjectPage(main) {
  const name = h("input", {
    type: "text",
    required: true,
    maxlength: "63",
    pattern: "[A-Za-z0-9_\\-]+",
    autocapitalize: "none",
  });
  const kind = select(Object.entries(KIND_NAMES), "rank");
  const ratings = check("Each answer is rated from 1 to 7", false);
  const shared = new ProjectFields(DEFAULTS);
  const send = async () => {
    const made = await post("projects", {
      name: name.value,
      kind: kind.value,
      wants_ratings: ratings.input.checked,
      ...shared.value,
    });
    location.hash = `#/projects/${path(made.name)}`;
    return `Project ${made.name} is made.`;
  };
  const fields = [
    field("Name", name, "Letters, digits, underscore and hyphen."),
    field("What labelers do", kind),
    ratings.element,
    shared.element,
  ];
  fill(
    main,
    h("h1", { tabindex: "-1" }, "New project"),
    h("div", { class: "card" }, form(fields, "Make project", send)),
    h(
      "p",
      { class: "hint" },
      "Tasks come by the command line: ",
      h("code", {}, "trimtab labeling import"),
      " takes a file, ",
      h("code", {}, "trimtab labeling draw"),
      " draws answers from the generation service.",
    ),
  );
}

export async function settingsPage(main, name) {
  const project = await get(`projects/${path(name)}`);
  const shared = new ProjectFields(project);
  const send = async () => {
    await post(`projects/${path(name)}`, shared.value);
    return "Changed.";
  };
  fill(
    main,
    h("h1", { tabindex: "-1" }, `Settings: ${name}`),
    h("p", {}, h("a", { href: `#/projects/${path(name)}` }, "Project")),
    h("div", { class: "card" }, form([shared.element], "Change", send)),
  );
}

class ProjectFields {
  element;
  #inputs;

  constructor(project) {
    const number = (value, min, max, step) => h("input", { type: "number", value, min, max, step, required: true });
    this.#inputs = {
      instructions: h("textarea", { rows: "12", maxlength: "200000" }),
      overlap: number(project.overlap, 1, 100, 1),
      lease: number(project.lease_ms / MINUTE_MS, 1 / 60, 1440, "any"),
      undo: number(project.undo_ms / MINUTE_MS, 0, 1440, "any"),
      pass: number(100 * project.qualification_pass, 0, 100, "any"),
      heldOutGroup: h("input", { type: "text", maxlength: "63", value: project.held_out_group, autocapitalize: "none" }),
      heldOutOverlap: number(project.held_out_overlap, 0, 100, 1),
      state: select(STATES, project.state),
    };
    this.#inputs.instructions.value = project.instructions;
    const { instructions, overlap, lease, undo, pass, heldOutGroup, heldOutOverlap, state } = this.#inputs;
    this.element = h(
      "div",
      {},
      field(
        "Instructions",
        instructions,
        "Markdown: headings, lists, tables, links, code. Markup of HTML is shown as text.",
      ),
      h(
        "div",
        { class: "fields" },
        field("Labels for each task", overlap, "Each of another labeler."),
        field("Minutes that a task stays with a labeler who does nothing", lease),
        field("Minutes in which the last label can be taken back", undo),
        field("Per cent of gold pairs for the qualification", pass, "0: the qualification bars nobody."),
        field(
          "Held-out group",
          heldOutGroup,
          "Its labels stand beside the labels for each task. Empty: all count alike.",
        ),
        field("Most held-out labels of a task", heldOutOverlap, "0: as many as there are such labelers."),
        field("State", state),
      ),
    );
  }

  get value() {
    const { instructions, overlap, lease, undo, pass, heldOutGroup, heldOutOverlap, state } = this.#inputs;
    return {
      instructions: instructions.value,
      overlap: Number(overlap.value),
      lease_ms: Math.round(MINUTE_MS * Number(lease.value)),
      undo_ms: Math.round(MINUTE_MS * Number(undo.value)),
      qualification_pass: Number(pass.value) / 100,
      held_out_group: heldOutGroup.value,
      held_out_overlap: Number(heldOutOverlap.value),
      state: state.value,
    };
  }
}
