// What is kept in this browser: until the service has it, drafts and what waits to be sent; and what `kept.js` needs to
// show a task without a connection. IndexedDB, for its size.

import { notice } from "./notices.js";

/** The tables of each database. None is added to one that is there: older pages could not open it any more. */
const DATABASES = { "trimtab-labeling": ["drafts", "outbox"], "trimtab-labeling-kept": ["kept"] };

const opened = new Map();
const inMemory = Object.fromEntries(
  Object.values(DATABASES)
    .flat()
    .map((table) => [table, new Map()]),
);

/** Keeps a record, which has its `key`, in a table; in one go with forgetting the one with the key `inPlaceOf`. */
export const keep = (table, record, inPlaceOf = null) =>
  change(
    table,
    (rows) => {
      rows.put(record);
      if (inPlaceOf !== null) rows.delete(inPlaceOf);
    },
    (map) => {
      map.set(record.key, record);
      map.delete(inPlaceOf);
    },
  );

/** Forgets a record. */
export const forget = (table, key) =>
  change(
    table,
    (rows) => rows.delete(key),
    (map) => map.delete(key),
  );

/** Forgets all records of a table. */
export const forgetAll = (table) =>
  change(
    table,
    (rows) => rows.clear(),
    (map) => map.clear(),
  );

/** All records of a table. */
export async function records(table) {
  const database = await open(table);
  if (!database) return [...inMemory[table].values()];
  return await settled(database.transaction(table).objectStore(table).getAll());
}

async function change(table, inDatabase, inMap) {
  const database = await open(table);
  if (!database) return inMap(inMemory[table]);
  const transaction = database.transaction(table, "readwrite");
  inDatabase(transaction.objectStore(table));
  transaction.commit(); // at once: the page may be on its way out
  await new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onabort = () => reject(transaction.error);
  }).catch(warn);
}

function open(table) {
  const [name, tables] = Object.entries(DATABASES).find(([, all]) => all.includes(table));
  if (!opened.has(name)) opened.set(name, openDatabase(name, tables).catch(warn));
  return opened.get(name);
}

function openDatabase(name, tables) {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(name, 1);
    request.onupgradeneeded = () =>
      tables.forEach((table) => request.result.createObjectStore(table, { keyPath: "key" }));
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function warn() {
  notice("store", "This browser does not let the page keep drafts: while there is no connection, do not close it.", {
    kind: "warning",
    canClose: true,
  });
  return null;
}

function settled(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
