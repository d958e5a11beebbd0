// The page: who is signed in, the header, and which part is shown. The part is in the address after `#`.

import { onSessionEnd, post, whoIsThere } from "./api.js";
import { fill, h } from "./dom.js";
import { Unreachable } from "./http.js";
import { notice } from "./notices.js";
import { runPage } from "./pages/run.js";
import { runsPage } from "./pages/runs.js";
import { signIn } from "./pages/sign_in.js";
import { Router } from "./router.js";

const AGAIN_MS = 2000;

const PAGES = [
  [/^$/, runsPage, () => "Runs"],
  [/^runs\/([^/]+)$/, runPage, (name) => name],
];

const router = new Router(PAGES, {
  home: "All runs",
  titleOf: (title) => (title === "Runs" ? "Runs · Trimtab" : `${title} · Runs`),
  untilBack: () => new Promise((resolve) => setTimeout(resolve, AGAIN_MS)),
});
let isEntering = false;

function showHeader({ name }) {
  fill(
    document.getElementById("header"),
    h("a", { class: "brand", href: "#/" }, "Trimtab"),
    h("nav", { "aria-label": "Pages" }, h("a", { href: "#/" }, "Runs")),
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
  if (isEntering) return;
  isEntering = true;
  router.close();
  try {
    showHeader(await whoIsSignedIn());
  } catch (error) {
    return router.fail(error);
  } finally {
    isEntering = false;
  }
  await router.show();
}

async function whoIsSignedIn() {
  try {
    return await whoIsThere();
  } catch (error) {
    if (error instanceof Unreachable) {
      await router.wait();
      return await whoIsSignedIn();
    }
    if (error.status !== 401) throw error;
    fill(document.getElementById("header"));
    return await signIn(document.getElementById("main"));
  }
}

onSessionEnd(enter);
enter();
