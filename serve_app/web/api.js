import { readEvents } from "./event-stream.js";
import { parse, stringify } from "./exact-json.js";
import { sentenceOf } from "./sentences.js";
import { isEnd } from "./statuses.js";

export { asSentence, sentenceOf } from "./sentences.js";

/** The address of the service: this module is at `web/api.js` below it, also behind a path prefix. */
const BASE = new URL("../", import.meta.url);
const KEY = "edits.key";
// The wait before a stream of events is opened again (ms), the first time and at most.
const FIRST_WAIT = 500;
const MAX_WAIT = 8000;

/** An error in one sentence for people. `status` is 0 if the service did not answer. */
export class ServiceError extends Error {
  constructor(message, { status = 0, code = "", details = {} } = {}) {
    super(message);
    Object.assign(this, { status, code, details });
  }

  /** Whether the same call may work later. */
  get isTemporary() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

let askForKey = null;

/** `ask(wasRefused)` is called when the service asks for a key. It resolves to the key, or to null for none. */
export function setKeyAsker(ask) {
  askForKey = ask;
}

/** The API key of this tab, or null. */
export function apiKey() {
  return sessionStorage.getItem(KEY);
}

/** Keep a key for this tab only; null forgets it. */
export function setApiKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/**
 * Call the service. A plain object as `body` is sent as JSON.
 * @param {string} path below the service's address, with its query: `v1/models`
 * @param {{method?: string, body?: any, headers?: Record<string, string>, signal?: AbortSignal}} [options]
 * @returns {Promise<Response>} an answer that is not an error
 * @throws {ServiceError}
 */
export async function call(path, options = {}) {
  for (;;) {
    const key = apiKey();
    const answer = await send(path, key, options);
    if (answer.ok) return answer;
    if (answer.status !== 401 || !(await hasNewKey(key))) throw await errorOf(answer);
  }
}

async function send(path, key, { method = "GET", body, headers = {}, signal } = {}) {
  const isJson = body !== undefined && !(body instanceof Blob) && !(body instanceof FormData);
  const all = { ...headers };
  if (isJson) all["content-type"] = "application/json";
  if (key) all.authorization = `Bearer ${key}`;
  try {
    const init = { method, headers: all, body: isJson ? stringify(body) : body, signal, cache: "no-store" };
    return await fetch(new URL(path, BASE), init);
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ServiceError("The service does not answer. Check that it is running and that you are connected.");
  }
}

let asking = null;

/** Whether there is a key now that was not there for the call; several calls ask together. */
async function hasNewKey(used) {
  if (apiKey() !== used) return true;
  if (!askForKey) return false;
  asking ??= askForKey(used !== null).finally(() => (asking = null));
  const key = await asking;
  if (key) setApiKey(key);
  return Boolean(key);
}

/** The service's answer to `path`, from JSON. */
export async function callJson(path, options) {
  return parse(await (await call(path, options)).text());
}

/** The error that an answer is. */
export async function errorOf(answer) {
  const body = await answer.json().catch(() => null);
  const facts = body?.detail?.error ?? body?.error ?? {};
  const message = sentenceOf(body, answer.status);
  return new ServiceError(message, { status: answer.status, code: facts.code ?? "", details: facts.details ?? {} });
}

/** Make an edit. */
export const submit = (body) => postOnce("v1/inference", body);

/** Send a body. Repeating it after a broken connection starts nothing twice. */
async function postOnce(path, body) {
  const headers = { "idempotency-key": newId() };
  for (let attempt = 0; ; attempt++) {
    try {
      return await callJson(path, { method: "POST", body, headers });
    } catch (error) {
      if (error.status !== 0 || attempt === 2) throw error;
      await wait(FIRST_WAIT * 2 ** attempt);
    }
  }
}

/** A random name. `crypto.randomUUID` exists only on https and localhost. */
function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export const explain = (body, signal) => callJson("v1/explain", { method: "POST", body, signal });
export const statusOf = (id) => callJson(`v1/requests/${encodeURIComponent(id)}/status`);
export const resultOf = (id) => callJson(`v1/requests/${encodeURIComponent(id)}/result`);
export const cancel = (id) => callJson(`v1/requests/${encodeURIComponent(id)}`, { method: "DELETE" });
export const models = () => callJson("v1/models");
export const calibrations = () => callJson("v1/calibrations");
export const operation = () => callJson("v1/operation");
/** The address of the service, with a slash at the end. */
export const base = BASE.href;
export const presets = () => callJson("v1/presets");

/** One page of the LoRA files whose path, trigger word or kind has the text `search`. */
export function loras(search = "", cursor = "", limit = 50) {
  return callJson(`v1/loras?${new URLSearchParams({ search, cursor, limit })}`);
}

/** A page of the history. Of the filters `status`, `model`, `lora`, `since` and `until`, empty ones do not count. */
export function history(filters) {
  const set = Object.entries(filters).filter(([, value]) => value !== "");
  return callJson(`v1/requests?${new URLSearchParams(set)}`);
}

/** Start a sweep. */
export const startSweep = (body) => postOnce("v1/sweeps", body);
/** Check a sweep and count its cells. */
export const countSweep = (body, signal) => callJson("v1/sweeps", { method: "POST", body: { ...body, dry_run: true }, signal });
export const sweeps = (cursor = "") => callJson(`v1/sweeps?${new URLSearchParams({ cursor, limit: 24 })}`);
export const sweep = (id) => callJson(`v1/sweeps/${encodeURIComponent(id)}`);
/** Change a sweep: `action` is `cancel` or `resume`. */
export const changeSweep = (id, action) => callJson(`v1/sweeps/${encodeURIComponent(id)}/${action}`, { method: "POST" });

/** A page of the training jobs whose name or trigger word has the text `search`. */
export function trainingJobs(search = "", cursor = "") {
  return callJson(`v1/training-jobs?${new URLSearchParams({ search, cursor })}`);
}

export const trainingJob = (name) => callJson(trainingPath(name));
/** Make the previews of a step again. The same step makes nothing again. */
export const makePreviews = (name, step) => callJson(`${trainingPath(name)}/previews`, { method: "POST", body: { step } });
export const previewsOf = (name, id) => callJson(`${trainingPath(name)}/previews/${encodeURIComponent(id)}`);

/** The file of an image that the trainer made, or a small JPEG of it. */
export async function sampleImage(name, file, isSmall, signal) {
  const query = isSmall ? "?thumbnail=true" : "";
  return (await call(`${trainingPath(name)}/samples/${encodeURIComponent(file)}${query}`, { signal })).blob();
}

/** The path of a training job, whose name has slashes. */
const trainingPath = (name) => `v1/training-jobs/${name.split("/").map(encodeURIComponent).join("/")}`;

/** Store an image for later requests. */
export function upload(blob, signal) {
  const headers = { "content-type": blob.type || "application/octet-stream" };
  return callJson("v1/uploads", { method: "POST", body: blob, headers, signal });
}

/**
 * The address of an image of a request on the page's own host, with its token: the service may know itself by another
 * name.
 */
export function imageUrl(url) {
  const start = url.indexOf("/v1/requests/");
  return new URL(start < 0 ? url : url.slice(start + 1), BASE).href;
}

/** The file of an image or a control image of a request: `kind` is `images` or `control-images`. */
export async function requestImage(id, kind, n, signal) {
  return (await call(`v1/requests/${encodeURIComponent(id)}/${kind}/${n}`, { signal })).blob();
}

/** The events of a request up to its end. */
export function events(id, signal) {
  return eventsOf(`v1/requests/${encodeURIComponent(id)}`, () => resultOf(id), signal);
}

/** The events of a sweep up to its end. */
export function sweepEvents(id, signal) {
  return eventsOf(`v1/sweeps/${encodeURIComponent(id)}`, () => sweep(id), signal);
}

/**
 * The events of what is at `path`, up to its end, which `endOf` asks for if it is over already. After a broken
 * connection or a restart of the service it continues after the last event; meanwhile it yields an event `offline` with
 * the error.
 * @yields {{event: string, id: string, data: any}}
 */
async function* eventsOf(path, endOf, signal) {
  let lastId = "";
  let pause = FIRST_WAIT;
  while (!signal.aborted) {
    try {
      const headers = lastId ? { "last-event-id": lastId } : {};
      const answer = await call(`${path}/events`, { headers, signal });
      if (answer.status === 204) {
        const data = await endOf();
        return yield { event: data.status, id: lastId, data };
      }
      for await (const event of readEvents(answer.body)) {
        lastId = event.id || lastId;
        pause = FIRST_WAIT;
        yield { ...event, data: parse(event.data) };
        if (isEnd(event.event)) return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof ServiceError && !error.isTemporary) throw error;
      yield { event: "offline", id: lastId, data: error };
    }
    await wait(pause);
    pause = Math.min(pause * 2, MAX_WAIT);
  }
}

const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
