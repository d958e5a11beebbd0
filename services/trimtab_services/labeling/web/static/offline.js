// Has the page's own files kept by a service worker, so that it can be loaded without a connection.

const WORKER = new URL("worker.js", document.baseURI).href;

/** Browsers have service workers over HTTPS, and on this machine; elsewhere a page cannot be loaded without a connection. */
export const canLoadOffline = "serviceWorker" in navigator;

/** Sets the worker up, or has it look for a newer one. */
export async function keepFiles() {
  if (!canLoadOffline) return;
  try {
    await navigator.serviceWorker.register(trustedWorker());
  } catch {
    // a browser that keeps nothing, or does not trust the certificate: the page works as it does without a worker
  }
}

/** The page's policy takes trusted addresses only, and lets one policy be made, which knows no other address. */
function trustedWorker() {
  if (!window.trustedTypes) return WORKER;
  return window.trustedTypes.createPolicy("worker", { createScriptURL: () => WORKER }).createScriptURL("");
}
