// The page: who is signed in, the header, and which part is shown. The part is in the address after `#`.

import { begin, onSessionEnd, post, session } from "./api.js";
import { connection } from "./connection.js";
import { fill, h } from "./dom.js";
import { Unreachable } from "./http.js";
import { forgetSession, goOnAsKept, keepSession } from "./kept.js";
import { notice } from "./notices.js";
import { keepFiles } from "./offline.js";
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
import { Router } from "./router.js";

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

const router = new Router(PAGES, {
  home: "All projects",
  titleOf: (title) => `${title} · Labeling`,
  untilBack: () => connection.whenUp(),
});

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
    await router.close(); // what is not saved yet goes out with the session
    await post("logout");
  } catch (error) {
    notice("sign-out", `You are still signed in: ${error.message}`, { kind: "error", canClose: true });
    return router.show();
  }
  await forgetSession();
  location.hash = "#/";
  location.reload();
}

/** Learns who is signed in, or asks. Without a connection it is who was signed in here last. */
async function enter() {
  try {
    await begin("GET", "me");
  } catch (error) {
    if (error instanceof Unreachable) {
      if (await goOnAsKept()) return;
      await router.wait();
      return await enter();
    }
    await forgetSession();
    await signIn(document.getElementById("main"));
  }
  await keepSession();
}

async function start() {
  await enter();
  onSessionEnd(signInAgain);
  showHeader();
  await sendLeftovers();
  if (!connection.isUp) connection.whenUp().then(sendLeftovers);
  keepFiles();
  await router.show();
}

start();
