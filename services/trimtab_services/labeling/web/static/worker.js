// The service worker: loads the page without a connection. It keeps the files of the page's newest version, which hold no
// data; calls of the API never pass through it. With a connection the page itself always comes from the service.

const VERSION = "DIGEST";
const FILES = ["FILES"];

const NAME = "trimtab-labeling-files-";
const CACHE = NAME + VERSION;
const PAGE = new URL(self.registration.scope);
const ASSETS = new URL("assets/", PAGE);

/** A service that has not begun to answer by then counts as away. */
const DEADLINE_MS = 10000;
/** What a proxy says whose service is away. */
const AWAY = new Set([502, 503, 504]);

self.addEventListener("install", (event) => event.waitUntil(install()));
self.addEventListener("activate", (event) => event.waitUntil(forgetOthers()));
self.addEventListener("fetch", (event) => {
  const { method, mode, url } = event.request;
  if (method !== "GET") return;
  if (mode === "navigate" && new URL(url).pathname === PAGE.pathname) event.respondWith(page(event.request));
  else if (url.startsWith(ASSETS.href)) event.respondWith(asset(event.request));
});

/** Keeps all files, or fails: then the worker before stays. */
async function install() {
  const answer = await fetch(PAGE, { cache: "no-cache" });
  const isOfThisVersion = answer.ok && (await answer.clone().text()).includes(VERSION);
  if (!isOfThisVersion) throw new Error("The page comes from another version of the service.");
  const cache = await caches.open(CACHE);
  await cache.addAll(FILES.map((name) => new URL(`${VERSION}/${name}`, ASSETS)));
  await cache.put(PAGE, answer);
  await self.skipWaiting(); // pages that are open have loaded all their files
}

async function forgetOthers() {
  const names = await caches.keys();
  const others = names.filter((name) => name.startsWith(NAME) && name !== CACHE);
  await Promise.all(others.map((name) => caches.delete(name)));
}

async function page(request) {
  const patience = new AbortController();
  const timer = setTimeout(() => patience.abort(), DEADLINE_MS);
  try {
    const answer = await fetch(request, { signal: patience.signal });
    if (!AWAY.has(answer.status)) return answer;
    return (await caches.match(PAGE, { cacheName: CACHE })) ?? answer;
  } catch (error) {
    const kept = await caches.match(PAGE, { cacheName: CACHE });
    if (kept) return kept;
    throw error;
  } finally {
    clearTimeout(timer);
  }
}

async function asset(request) {
  return (await caches.match(request, { cacheName: CACHE })) ?? (await fetch(request));
}
