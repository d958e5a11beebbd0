// What people are told of the connection, and work that is done again and again while somebody looks.

import { Unreachable } from "./http.js";
import { notice, withdraw } from "./notices.js";

let isUp = true;

/** Notes that an answer came. */
export function worked() {
  if (isUp) return;
  isUp = true;
  withdraw("connection");
}

/** Notes that none came. */
export function failed() {
  if (!isUp) return;
  isUp = false;
  notice("connection", "There is no connection to the service. The page goes on by itself when it is back.", {
    kind: "warning",
  });
}

/**
 * Does work every so often while the page is in front, from `everyMs` on. Returns what ends it.
 *
 * @param {() => Promise<void>} work may throw `Unreachable`: it is done again then, too.
 * @param {() => number} everyMs asked after each time.
 */
export function repeatedly(work, everyMs) {
  let timer = null;
  let isOver = false;
  let isWorking = false;
  const again = () => {
    clearTimeout(timer);
    if (!isOver && !isWorking && !document.hidden) timer = setTimeout(once, everyMs());
  };
  const once = async () => {
    isWorking = true;
    try {
      await work();
    } catch (error) {
      if (error.status === 404) isOver = true; // gone, which the page says
      else if (!(error instanceof Unreachable)) throw error;
    } finally {
      isWorking = false;
      again();
    }
  };
  document.addEventListener("visibilitychange", again);
  again();
  return () => {
    isOver = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", again);
  };
}
