// Signing in with a token, which is sent once: from then on a cookie that scripts cannot read stands for it.

import { post } from "../api.js";
import { field, fill, h } from "../dom.js";

/** Shows the page until somebody is signed in; returns what the service tells them. */
export function signIn(main) {
  document.title = "Sign in · Runs";
  return new Promise((resolve) => {
    const token = h("input", { type: "password", autocomplete: "current-password", required: true, maxlength: "4096" });
    const problem = h("p", { class: "problem", role: "alert" });
    const button = h("button", { class: "primary" }, "Sign in");
    const submit = async (event) => {
      event.preventDefault();
      button.disabled = true;
      fill(problem, "");
      try {
        resolve(await post("session", { token: token.value }));
      } catch (error) {
        fill(problem, error.status === 401 ? "This token is not known." : error.message);
        token.select();
      } finally {
        button.disabled = false;
      }
    };
    const hint = "A token with the scope `runs`, as the commands send it.";
    fill(
      main,
      h(
        "div",
        { class: "sign-in card" },
        h("h1", {}, "Sign in"),
        h("form", { onSubmit: submit }, field("Token", token, hint), problem, button),
      ),
    );
    token.focus();
  });
}
