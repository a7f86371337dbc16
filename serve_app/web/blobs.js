/** The files of images that were given to this page, in the browser's own database: for a view of them after a reload. */

const NAME = "edits";
const STORE = "blobs";
// How many files are kept; the oldest go first.
const MAX_FILES = 40;

let opened = null;

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" }).createIndex("at", "at");
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** Keep a file under its SHA-256. Without room or permission it is not kept. */
export async function keepBlob(id, blob) {
  try {
    const store = (await database()).transaction(STORE, "readwrite").objectStore(STORE);
    await done(store.put({ id, blob, at: Date.now() }));
    const keys = await done(store.index("at").getAllKeys());
    for (const key of keys.slice(0, -MAX_FILES)) store.delete(key);
  } catch {
    // The page works without it, up to the next reload.
  }
}

/** The file, null if it is not kept. */
export async function keptBlob(id) {
  try {
    const store = (await database()).transaction(STORE).objectStore(STORE);
    return (await done(store.get(id)))?.blob ?? null;
  } catch {
    return null;
  }
}
