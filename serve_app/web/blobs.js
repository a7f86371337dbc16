import { keep, recall } from "./state.js";

/**
 * The files of images that were given to this tab, in the browser's own database: for a view of them after a reload.
 * Each file belongs to the session of a tab. Those of tabs that are closed are deleted when the page is next opened.
 */

const NAME = "edits";
const STORE = "files";
const VERSION = 2;
const LOCK = "edits.session.";
// A tab that loads this page again is closed for a moment, at most for so long (ms).
const RELOAD = 10_000;
// How many files of a session are kept; the oldest go first.
const MAX_FILES = 40;

const session = recall("session", null) ?? Array.from(crypto.getRandomValues(new Uint32Array(4))).join("-");
keep("session", session);

let opened = null;

/** The database, from which the files of closed tabs are deleted soon. Fails where tabs cannot be told apart: on plain http. */
function database() {
  opened ??= open();
  return opened;
}

async function open() {
  // Held until the tab is closed or loads another page.
  navigator.locks.request(LOCK + session, () => new Promise(() => {}));
  const found = await new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = () => {
      for (const name of request.result.objectStoreNames) request.result.deleteObjectStore(name);
      request.result.createObjectStore(STORE, { keyPath: ["session", "id"] });
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("another tab has an older version of this page"));
  });
  const before = await openSessions();
  setTimeout(async () => deleteAllBut(found, new Set([...before, ...(await openSessions())])), RELOAD);
  return found;
}

async function openSessions() {
  const { held } = await navigator.locks.query();
  return new Set([LOCK + session, ...held.map((lock) => lock.name)]);
}

async function deleteAllBut(database, sessions) {
  const store = database.transaction(STORE, "readwrite").objectStore(STORE);
  for (const key of await done(store.getAllKeys())) {
    if (!sessions.has(LOCK + key[0])) store.delete(key);
  }
}

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

const OF_SESSION = () => IDBKeyRange.bound([session], [session, []]);

/** Keep a file under its SHA-256. Without room or permission it is not kept. */
export async function keepBlob(id, blob) {
  try {
    const store = (await database()).transaction(STORE, "readwrite").objectStore(STORE);
    await done(store.put({ session, id, blob, at: Date.now() }));
    const files = await done(store.getAll(OF_SESSION()));
    const old = files.sort((one, other) => one.at - other.at).slice(0, -MAX_FILES);
    for (const file of old) store.delete([session, file.id]);
  } catch {
    // The page works without it, up to the next reload.
  }
}

/** The file, null if it is not kept. */
export async function keptBlob(id) {
  try {
    const store = (await database()).transaction(STORE).objectStore(STORE);
    return (await done(store.get([session, id])))?.blob ?? null;
  } catch {
    return null;
  }
}

/** Delete the files that this tab has kept. */
export async function forgetBlobs() {
  try {
    const store = (await database()).transaction(STORE, "readwrite").objectStore(STORE);
    await done(store.delete(OF_SESSION()));
  } catch {
    // Nothing is kept.
  }
}
