// Signing in: as a page at first, as a dialog over a task when the session has ended meanwhile.

import { begin, session } from "../api.js";
import { field, fill, freshId, h } from "../dom.js";

/** Shows the page until somebody is signed in. */
export function signIn(main) {
  document.title = "Sign in · Labeling";
  return new Promise((resolve) => {
    const name = h("input", {
      type: "text",
      autocomplete: "username",
      autocapitalize: "none",
      spellcheck: "false",
      required: true,
      maxlength: "63",
    });
    const form = passwordForm(() => name.value, [field("Name", name)], resolve);
    fill(main, h("div", { class: "sign-in card" }, h("h1", {}, "Sign in"), form));
    name.focus();
  });
}

let asking = null;

/** Signs the same person in again; what is on the page stays there. Several who wait share one dialog. */
export function signInAgain() {
  asking ??= new Promise((resolve) => {
    const id = freshId("dialog");
    const { name } = session.account;
    const form = passwordForm(
      () => name,
      [h("p", {}, `Your session has ended. What you did is kept. Sign in again as ${name}.`)],
      () => {
        dialog.close();
        dialog.remove();
        asking = null;
        resolve();
      },
    );
    const dialog = h(
      "dialog",
      { "aria-labelledby": id, onCancel: (event) => event.preventDefault() },
      h("h2", { id }, "Sign in again"),
      form,
    );
    document.body.append(dialog);
    dialog.showModal();
  });
  return asking;
}

function passwordForm(nameOf, above, onDone) {
  const password = h("input", { type: "password", autocomplete: "current-password", required: true });
  const error = h("p", { class: "problem", role: "alert" });
  const button = h("button", { class: "primary" }, "Sign in");
  const submit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    fill(error, "");
    try {
      await begin("POST", "login", { name: nameOf(), password: password.value });
      onDone();
    } catch (failure) {
      fill(error, failure.status === 401 ? "No account has this name and password." : failure.message);
      password.select();
    } finally {
      button.disabled = false;
    }
  };
  return h("form", { onSubmit: submit }, above, field("Password", password), error, button);
}
