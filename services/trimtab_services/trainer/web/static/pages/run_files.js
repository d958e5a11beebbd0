// What a run was told to do, and what its process wrote.

import { get } from "../api.js";
import { fill, h } from "../dom.js";
import { figure } from "../format.js";
import { folded } from "./folded.js";

/** The run spec. */
export function specSection({ spec_yaml, directory }) {
  return folded("Spec", async (place) =>
    fill(place, h("p", { class: "hint" }, `Folder: ${directory}`), box("Spec", spec_yaml)),
  );
}

/** The end of the process's output, asked for again by its button. */
export function outputSection(path) {
  return folded("Output of the process", async (place) => {
    const show = async () => {
      const { output } = await get(`${path}/output`);
      if (output === null) return fill(place, h("p", { class: "hint" }, "There is none on the volume of this service."));
      const shown = new TextEncoder().encode(output.text).length;
      const all = output.bytes > shown ? `the last ${figure(shown)} of ${figure(output.bytes)} bytes` : "all of it";
      const again = h("button", { type: "button", onClick: show }, "Load again");
      const text = box("Output of the process", output.text);
      fill(place, h("div", { class: "row" }, h("span", { class: "hint" }, all), again), text);
      text.scrollTop = text.scrollHeight;
    };
    await show();
  });
}

function box(label, text) {
  return h("pre", { class: "file", tabindex: "0", role: "region", "aria-label": label }, text);
}
