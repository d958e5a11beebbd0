// For admins: accounts.

import { get, path, post } from "../api.js";
import { field, fill, h } from "../dom.js";
import { check, form, select } from "./forms.js";
import { moreButton } from "./lists.js";

const ROLES = [
  ["labeler", "Labeler"],
  ["reviewer", "Reviewer: sees all labels and the agreement"],
  ["admin", "Admin: also manages accounts and projects"],
];

const GROUPS_ID = "known-groups";

export async function accountsPage(main) {
  const list = h("ul", { class: "cards plain" });
  const { accounts, groups, next_after } = await get("accounts");
  const known = [...new Set([...groups, "heldout"])];
  list.append(...accounts.map(card));
  fill(
    main,
    h("h1", { tabindex: "-1" }, "Accounts"),
    h(
      "datalist",
      { id: GROUPS_ID },
      known.map((value) => h("option", { value })),
    ),
    newAccount((account) => list.prepend(card(account))),
    h("h2", {}, "All accounts"),
    list,
    moreButton(next_after, async (after) => {
      const page = await get(`accounts?after=${encodeURIComponent(after)}`);
      list.append(...page.accounts.map(card));
      return page.next_after;
    }),
  );
}

function newAccount(onMade) {
  const name = h("input", {
    type: "text",
    required: true,
    maxlength: "63",
    pattern: "[A-Za-z0-9._\\-]+",
    autocomplete: "off",
    autocapitalize: "none",
  });
  const password = passwordInput(true);
  const role = select(ROLES, "labeler");
  const group = groupInput("");
  const send = async () => {
    const account = await post("accounts", {
      name: name.value,
      password: password.value,
      role: role.value,
      group: group.value,
    });
    name.value = password.value = "";
    onMade(account);
    return `Account ${account.name} is made.`;
  };
  const fields = [
    field("Name", name, "Letters, digits, dot, underscore and hyphen. It stands in exported labels."),
    field("Password", password, "At least 12 characters; its owner can change it."),
    field("Role", role),
    field("Group", group, "Such as heldout, for labels that no model is trained on. May be empty."),
  ];
  return h(
    "section",
    { class: "card" },
    h("h2", {}, "New account"),
    form(h("div", { class: "fields" }, fields), "Make account", send),
  );
}

function card(account) {
  const role = select(ROLES, account.role);
  const group = groupInput(account.group);
  const password = passwordInput(false);
  const enabled = check("Can sign in", account.enabled);
  const send = async () => {
    const change = { role: role.value, group: group.value, enabled: enabled.input.checked };
    if (password.value) change.password = password.value;
    await post(`accounts/${path(account.name)}`, change);
    password.value = "";
    return "Changed.";
  };
  const summary = h(
    "summary",
    {},
    h("strong", {}, account.name),
    " ",
    [account.role, account.group, !account.enabled && "disabled"]
      .filter(Boolean)
      .map((fact) => h("span", { class: "badge" }, fact)),
  );
  const fields = [
    field("Role", role),
    field("Group", group),
    field("New password", password, "Empty: unchanged."),
    enabled.element,
  ];
  return h(
    "li",
    { class: "card" },
    h("details", {}, summary, form(h("div", { class: "fields" }, fields), "Change", send)),
  );
}

function passwordInput(required) {
  return h("input", { type: "password", required, minlength: "12", maxlength: "1000", autocomplete: "new-password" });
}

function groupInput(value) {
  return h("input", { type: "text", maxlength: "63", value, list: GROUPS_ID, autocapitalize: "none" });
}
