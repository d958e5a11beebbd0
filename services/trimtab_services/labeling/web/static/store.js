// What is kept in this browser until the service has it: drafts and what waits to be sent. IndexedDB, for its size.

import { notice } from "./notices.js";

const NAME = "trimtab-labeling";
const TABLES = ["drafts", "outbox"];

let opened = null;
const inMemory = Object.fromEntries(TABLES.map((table) => [table, new Map()]));

/** Keeps a record, which has its `key`, in a table. */
export const keep = (table, record) =>
  change(
    table,
    (rows) => rows.put(record),
    (map) => map.set(record.key, record),
  );

/** Forgets a record. */
export const forget = (table, key) =>
  change(
    table,
    (rows) => rows.delete(key),
    (map) => map.delete(key),
  );

/** All records of a table. */
export async function records(table) {
  const database = await open();
  if (!database) return [...inMemory[table].values()];
  return await settled(database.transaction(table).objectStore(table).getAll());
}

async function change(table, inDatabase, inMap) {
  const database = await open();
  if (!database) return inMap(inMemory[table]);
  const transaction = database.transaction(table, "readwrite");
  inDatabase(transaction.objectStore(table));
  await new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onabort = () => reject(transaction.error);
  }).catch(warn);
}

function open() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () =>
      TABLES.forEach((table) => request.result.createObjectStore(table, { keyPath: "key" }));
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  }).catch(warn);
  return opened;
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
