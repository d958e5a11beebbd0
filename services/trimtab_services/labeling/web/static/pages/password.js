// One's own password.

import { begin } from "../api.js";
import { field, fill, h } from "../dom.js";
import { form } from "./forms.js";

export function passwordPage(main) {
  const old = h("input", { type: "password", autocomplete: "current-password", required: true });
  const fresh = h("input", {
    type: "password",
    autocomplete: "new-password",
    required: true,
    minlength: "12",
    maxlength: "1000",
  });
  const change = async () => {
    await begin("POST", "me/password", { password: old.value, new_password: fresh.value });
    old.value = fresh.value = "";
    return "Your password is changed. Other browsers are signed out.";
  };
  fill(
    main,
    h("h1", { tabindex: "-1" }, "Password"),
    h(
      "div",
      { class: "card narrow" },
      form([field("Password now", old), field("New password", fresh, "At least 12 characters.")], "Change", change),
    ),
  );
}
