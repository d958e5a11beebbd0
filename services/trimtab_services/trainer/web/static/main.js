// The page: who is signed in, the header, and which part is shown. The part is in the address after `#`.

import { ApiError, Unreachable, onSessionEnd, post, whoIsThere } from "./api.js";
import { failed, worked } from "./connection.js";
import { fill, h } from "./dom.js";
import { notice } from "./notices.js";
import { replicasPage } from "./pages/replicas.js";
import { runPage } from "./pages/run.js";
import { runsPage } from "./pages/runs.js";
import { signIn } from "./pages/sign_in.js";

const AGAIN_MS = 2000;

/** Pattern, page, title. A page gets its place and the groups of the pattern; it may return what leaves it. */
const PAGES = [
  [/^$/, runsPage, () => "Runs"],
  [/^runs\/([^/]+)$/, runPage, (name) => name],
  [/^replicas$/, replicasPage, () => "Replicas"],
];

const main = document.getElementById("main");
let leave = null;
let shown = 0;
let isSigningIn = false;

async function route() {
  if (isSigningIn) return;
  shown += 1;
  const mine = shown;
  leave?.();
  leave = null;
  const [page, title, groups] = match(location.hash.replace(/^#\/?/, ""));
  document.title = title === "Runs" ? "Runs · Trimtab" : `${title} · Runs`;
  // each page gets a place of its own: one that comes late fills nothing that is shown
  const place = h("div", { class: "page" }, h("p", { class: "hint" }, "Loading…"));
  fill(main, place);
  try {
    const left = await page(place, ...groups);
    if (mine !== shown) return left?.();
    leave = left;
    worked();
    if (!place.contains(document.activeElement)) place.querySelector("h1").focus({ preventScroll: true });
  } catch (error) {
    if (mine === shown) showFailure(error);
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
  fill(place, h("h1", { tabindex: "-1" }, "There is no such page"), h("p", {}, h("a", { href: "#/" }, "All runs")));
}

function showFailure(error) {
  if (error instanceof Unreachable) {
    failed();
    const mine = shown;
    fill(main, h("h1", {}, "Waiting for the service"), h("p", {}, "The page is shown as soon as the service answers."));
    setTimeout(() => mine === shown && route(), AGAIN_MS);
  } else if (error instanceof ApiError) {
    if (error.status === 401) return; // signing in has begun
    fill(
      main,
      h("h1", {}, "That did not work"),
      h("p", {}, error.message),
      h("p", {}, h("a", { href: "#/" }, "All runs")),
    );
  } else throw error;
}

function showHeader({ name, knows_replicas }) {
  fill(
    document.getElementById("header"),
    h("a", { class: "brand", href: "#/" }, "Trimtab"),
    h(
      "nav",
      { "aria-label": "Pages" },
      h("a", { href: "#/" }, "Runs"),
      knows_replicas && h("a", { href: "#/replicas" }, "Replicas"),
    ),
    name !== null &&
      h(
        "div",
        { class: "row" },
        h("span", { class: "hint" }, name),
        h("button", { type: "button", class: "quiet", onClick: signOut }, "Sign out"),
      ),
  );
}

async function signOut() {
  try {
    await post("session/end");
  } catch (error) {
    return notice("sign-out", `You are still signed in: ${error.message}`, { kind: "error", canClose: true });
  }
  location.hash = "#/";
  location.reload();
}

/** Learns who is there, asks where nobody is, and shows the page. */
async function enter() {
  if (isSigningIn) return;
  isSigningIn = true;
  shown += 1;
  leave?.();
  leave = null;
  try {
    showHeader(await whoIsThere());
  } catch (error) {
    if (error instanceof Unreachable) {
      failed();
      setTimeout(enter, AGAIN_MS);
      isSigningIn = false;
      return;
    }
    if (error.status !== 401) {
      isSigningIn = false;
      return showFailure(error);
    }
    fill(document.getElementById("header"));
    showHeader(await signIn(main));
  }
  isSigningIn = false;
  await route();
}

document.getElementById("skip-link").addEventListener("click", (event) => {
  event.preventDefault(); // the address names the page, not a place on it
  main.focus();
});
window.addEventListener("hashchange", route);
window.addEventListener("unhandledrejection", (event) => {
  if (event.reason?.status === 401) return; // signing in has begun
  const text = event.reason instanceof Error ? event.reason.message : "unknown";
  notice("fault", `That did not work: ${text}`, { kind: "error", canClose: true });
});
onSessionEnd(enter);
enter();
