import { parse, stringify } from "./exact-json.js";

/** What survives a reload of the tab, as JSON in its session storage. */

const PREFIX = "edits.";

/** What was kept under `name`, `fallback` if there is nothing or it cannot be read. */
export function recall(name, fallback) {
  try {
    return parse(sessionStorage.getItem(PREFIX + name)) ?? fallback;
  } catch {
    return fallback;
  }
}

/** Keep `value` under `name`. Without room or permission it is not kept. */
export function keep(name, value) {
  try {
    sessionStorage.setItem(PREFIX + name, stringify(value));
  } catch {
    // The page works without it, up to the next reload.
  }
}

/** Delete all that this tab has kept, its API key too. */
export function forgetAll() {
  for (const name of Object.keys(sessionStorage)) {
    if (name.startsWith(PREFIX)) sessionStorage.removeItem(name);
  }
}
