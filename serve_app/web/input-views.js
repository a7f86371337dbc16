import * as api from "./api.js";
import { keptBlob } from "./blobs.js";

/** URLs of the control images of requests, to show them next to their results. */

const urls = new Map();

/**
 * The URL of a control image in this tab: this browser's copy of the file, or the service's.
 * @param {string} requestId
 * @param {number} n
 * @param {string} sha256
 * @returns {Promise<string|null>} null if neither has it
 */
export function inputView(requestId, n, sha256) {
  if (!urls.has(sha256)) urls.set(sha256, find(requestId, n, sha256));
  return urls.get(sha256);
}

async function find(requestId, n, sha256) {
  try {
    const blob = (await keptBlob(sha256)) ?? (await api.requestImage(requestId, "control-images", n));
    return URL.createObjectURL(blob);
  } catch {
    urls.delete(sha256); // it may be there later
    return null;
  }
}
