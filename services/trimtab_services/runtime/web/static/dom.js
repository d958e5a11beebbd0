// Elements out of plain calls. A child that is a string becomes a text node: no text is ever read as markup.

/**
 * Makes an element.
 *
 * @param {string} tag its name.
 * @param {object} properties `onClick` and the like listen; `true` sets an empty attribute; null and false set none.
 * @param {...(Node|string|number|null|Array)} children null is left out.
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2).toLowerCase(), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== false && value !== undefined) element.setAttribute(name, value);
  }
  append(element, children);
  return element;
}

/** Puts children in place of what an element has. */
export function fill(element, ...children) {
  element.replaceChildren();
  append(element, children);
  return element;
}

/** A number with its noun: `1 label`, `2 labels`. */
export function counted(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

let lastNumber = 0;

/** An id for an element that another one names. */
export function freshId(name) {
  lastNumber += 1;
  return `${name}-${lastNumber}`;
}

/** An id that nobody else makes; `crypto.randomUUID` is there over HTTPS only. */
export function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A field with its label. */
export function field(label, input, hint = null) {
  input.id ||= freshId("field");
  const note = hint && h("p", { class: "hint", id: freshId("hint") }, hint);
  if (note) input.setAttribute("aria-describedby", note.id);
  return h("div", { class: "field" }, h("label", { for: input.id }, label), input, note);
}

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
}
