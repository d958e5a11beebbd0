// The page: who is signed in, the header, and which part is shown. The part is in the address after `#`.

import { ApiError, Unreachable, begin, onSessionEnd, post, session } from "./api.js";
import { connection } from "./connection.js";
import { fill, h } from "./dom.js";
import { notice } from "./notices.js";
import { sendLeftovers } from "./outbox.js";
import { accountsPage } from "./pages/accounts.js";
import { auditPage } from "./pages/audit.js";
import { labelsPage } from "./pages/labels.js";
import { minePage } from "./pages/mine.js";
import { passwordPage } from "./pages/password.js";
import { projectPage } from "./pages/project.js";
import { projectsPage } from "./pages/projects.js";
import { reviewPage } from "./pages/review.js";
import { newProjectPage, settingsPage } from "./pages/settings.js";
import { signIn, signInAgain } from "./pages/sign_in.js";
import { workPage } from "./pages/work.js";

/** Pattern, page, title. A page gets `main` and the groups of the pattern; it may return what leaves it. */
const PAGES = [
  [/^$/, projectsPage, () => "Projects"],
  [/^projects\/([^/]+)$/, projectPage, (name) => name],
  [/^projects\/([^/]+)\/work$/, workPage, (name) => `Task: ${name}`],
  [/^projects\/([^/]+)\/tasks\/(\d+)$/, workPage, (name) => `Task: ${name}`],
  [/^projects\/([^/]+)\/mine$/, minePage, (name) => `My labels: ${name}`],
  [/^projects\/([^/]+)\/review$/, reviewPage, (name) => `Agreement: ${name}`],
  [/^projects\/([^/]+)\/labels$/, labelsPage, (name) => `All labels: ${name}`],
  [/^projects\/([^/]+)\/settings$/, settingsPage, (name) => `Settings: ${name}`],
  [/^new-project$/, newProjectPage, () => "New project"],
  [/^accounts$/, accountsPage, () => "Accounts"],
  [/^audit$/, auditPage, () => "Audit"],
  [/^password$/, passwordPage, () => "Password"],
];

const main = document.getElementById("main");
let leave = null;
let shown = 0;

async function route() {
  shown += 1;
  const mine = shown;
  leave?.();
  leave = null;
  const [page, title, groups] = match(location.hash.replace(/^#\/?/, ""));
  document.title = `${title} · Labeling`;
  // each page gets a place of its own: one that comes late fills nothing that is shown
  const place = h("div", { class: "page" }, h("p", { class: "hint" }, "Loading…"));
  fill(main, place);
  try {
    const left = await page(place, ...groups);
    if (mine !== shown) return left?.();
    leave = left;
    if (!place.contains(document.activeElement)) place.querySelector("h1").focus({ preventScroll: true });
  } catch (error) {
    if (mine === shown) await failed(error);
  }
}

function match(address) {
  for (const [pattern, page, title] of PAGES) {
    const found = pattern.exec(address);
    if (!found) continue;
    const groups = found.slice(1).map(decodeURIComponent);
    return [page, title(...groups), groups];
  }
  return [notFoundPage, "Not found", []];
}

function notFoundPage(place) {
  fill(place, h("h1", { tabindex: "-1" }, "There is no such page"), h("p", {}, h("a", { href: "#/" }, "All projects")));
}

async function failed(error) {
  if (error instanceof Unreachable) {
    const mine = shown;
    fill(
      main,
      h("h1", {}, "Waiting for the service"),
      h("p", {}, "This page is shown as soon as the service answers."),
    );
    await connection.whenUp();
    if (mine === shown) await route();
  } else if (error instanceof ApiError) {
    fill(
      main,
      h("h1", {}, "That did not work"),
      h("p", {}, error.message),
      h("p", {}, h("a", { href: "#/" }, "All projects")),
    );
  } else throw error;
}

function showHeader() {
  const { name, role } = session.account;
  const isAdmin = role === "admin";
  fill(
    document.getElementById("header"),
    h("a", { class: "brand", href: "#/" }, "Labeling"),
    h(
      "nav",
      { "aria-label": "Pages" },
      h("a", { href: "#/" }, "Projects"),
      isAdmin && h("a", { href: "#/accounts" }, "Accounts"),
      isAdmin && h("a", { href: "#/audit" }, "Audit"),
    ),
    h(
      "div",
      { class: "row" },
      h("a", { href: "#/password", title: `${name}, ${role}: change the password` }, name),
      h("button", { type: "button", class: "quiet", onClick: signOut }, "Sign out"),
    ),
  );
}

async function signOut() {
  try {
    await leave?.(); // what is not saved yet goes out with the session
    leave = null;
    await post("logout");
  } catch (error) {
    return notice("sign-out", `You are still signed in: ${error.message}`, { kind: "error", canClose: true });
  }
  location.hash = "#/";
  location.reload();
}

async function start() {
  document.getElementById("skip-link").addEventListener("click", (event) => {
    event.preventDefault(); // the address names the page, not a place on it
    main.focus();
  });
  try {
    await begin("GET", "me");
  } catch (error) {
    if (error instanceof Unreachable) {
      await connection.whenUp();
      return start();
    }
    await signIn(main);
  }
  onSessionEnd(signInAgain);
  showHeader();
  await sendLeftovers();
  window.addEventListener("hashchange", route);
  await route();
}

window.addEventListener("unhandledrejection", (event) => {
  const text = event.reason instanceof Error ? event.reason.message : "unknown";
  notice("fault", `That did not work: ${text}`, { kind: "error", canClose: true });
});

start();
