// Writes the ideal answer to a prompt, or prompt and answer.

import { freshId, h } from "../dom.js";
import { charactersOf } from "./texts.js";

export class DemonstrateEditor {
  element;
  keys = [];

  #fields = {};
  #most;

  constructor(task, project, onChange) {
    this.#most = project.limits.max_answer_characters;
    const names = task.writes_prompt ? ["prompt", "completion"] : ["completion"];
    const titles = { prompt: "Prompt", completion: "Ideal answer" };
    this.element = h(
      "div",
      { class: "demonstrate-editor" },
      names.map((name) => this.#field(name, titles[name], onChange)),
    );
  }

  draft() {
    return Object.fromEntries(Object.entries(this.#fields).map(([name, { area }]) => [name, area.value]));
  }

  restore(label) {
    for (const [name, { area, count }] of Object.entries(this.#fields)) {
      area.value = label[name] ?? "";
      count();
    }
  }

  problem() {
    for (const [name, { area }] of Object.entries(this.#fields)) {
      const size = charactersOf(area.value);
      if (!area.value.trim()) return { message: name === "prompt" ? "Write a prompt." : "Write an answer.", at: area };
      if (size > this.#most) {
        const over = (size - this.#most).toLocaleString("en");
        return {
          message: `The text has ${over} characters more than the ${this.#most.toLocaleString("en")} that are allowed.`,
          at: area,
        };
      }
    }
    return null;
  }

  doubt() {
    return null;
  }

  label() {
    return this.draft();
  }

  key() {
    return false;
  }

  #field(name, title, onChange) {
    const counter = h("p", { class: "hint", id: freshId("count") });
    const area = h("textarea", {
      id: freshId("text"),
      dir: "auto",
      rows: name === "prompt" ? "5" : "14",
      spellcheck: "true",
      "aria-describedby": counter.id,
      onInput: () => {
        count();
        onChange();
      },
    });
    const count = () => {
      const length = charactersOf(area.value);
      counter.textContent = `${length.toLocaleString("en")} of ${this.#most.toLocaleString("en")} characters`;
      counter.classList.toggle("over", length > this.#most);
    };
    count();
    this.#fields[name] = { area, count };
    return h("section", { class: "card" }, h("h2", {}, h("label", { for: area.id }, title)), area, counter);
  }
}
