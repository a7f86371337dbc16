import * as api from "./api.js";
import { announce } from "./announce.js";
import { Slots } from "./slots.js";
import { keep, recall } from "./state.js";
import { isEnd } from "./statuses.js";

/**
 * The requests that this tab has sent, followed by their events. Their ids survive a reload.
 *
 * @typedef {object} Job
 * @property {string} id of the request
 * @property {string} prompt
 * @property {{id: string, width: number, height: number}[]} inputs its control images: uploads
 * @property {boolean} ignoresExif whether the control images are used as the file stores them
 * @property {string} status as the service names it
 * @property {number|null} position images ahead of it in the queue
 * @property {number|null} eta seconds
 * @property {number} step
 * @property {number} steps
 * @property {string|null} stage
 * @property {{step: number, at: number}|null} firstStep the first step that this page has seen, and when (ms)
 * @property {string|null} preview a data: URL
 * @property {object|null} output its image, as `outputs.images` has it
 * @property {object|null} record the effective record
 * @property {string|null} problem why it failed
 * @property {string|null} warning why nothing is heard of it
 */

const POLL = 2000;
export const CHANGED = "changed";
/** Sends CHANGED after each change of a job. */
export const changes = new EventTarget();

/** @type {Job[]} newest first */
export let jobs = [];
const streams = new Map();
// Over HTTP/1.1 a browser has six connections to a service, for all of its tabs, and the page needs some for the rest.
const slots = new Slots(2);
// The requests whose events this page gets; the others are polled.
const streamed = new Set();

/** Send a request and follow it. @returns {Promise<Job>} */
export async function start(body, inputs) {
  const { request_id: id } = await api.submit(body);
  const job = newJob({ id, prompt: body.prompts[0].prompt, inputs, ignoresExif: body.exif !== "apply" });
  jobs = [job, ...jobs];
  save();
  announce("The request is in the queue.");
  follow(job);
  return job;
}

/** Follow again what this tab has followed before a reload. */
export function resume() {
  if (jobs.length) return;
  jobs = recall("jobs", []).map(newJob);
  jobs.forEach(follow);
}

function newJob(known) {
  const unknown = { position: null, eta: null, step: 0, steps: 0, stage: null, firstStep: null, preview: null, output: null };
  return { ...unknown, status: "in_queue", record: null, problem: null, warning: null, ...known };
}

export const findJob = (id) => jobs.find((job) => job.id === id) ?? null;
export const hasEnded = (job) => isEnd(job.status);

/** Cancel a request. */
export async function cancel(job) {
  try {
    const { status } = await api.cancel(job.id);
    set(job, { status, warning: null });
    announce("The request is canceled.");
  } catch (error) {
    set(job, { warning: error.message });
  }
}

/** Take a job off the list; the service keeps its request. */
export function dismiss(job) {
  streams.get(job.id)?.abort();
  streams.delete(job.id);
  jobs = jobs.filter((other) => other !== job);
  save();
}

function save() {
  keep("jobs", jobs.map(({ id, prompt, inputs, ignoresExif }) => ({ id, prompt, inputs, ignoresExif })));
  changes.dispatchEvent(new Event(CHANGED));
}

function set(job, fields) {
  Object.assign(job, fields);
  changes.dispatchEvent(new Event(CHANGED));
}

async function follow(job) {
  const stream = new AbortController();
  streams.set(job.id, stream);
  const poll = setInterval(() => look(job), POLL);
  let giveBack = null;
  try {
    giveBack = await slots.take(stream.signal);
    streamed.add(job.id);
    if (!hasEnded(job)) for await (const event of api.events(job.id, stream.signal)) receive(job, event);
  } catch (error) {
    const isGone = error.status === 404;
    const problem = isGone ? "The service no longer stores this request. Take it off the list." : error.message;
    set(job, { status: "failed", problem });
  } finally {
    clearInterval(poll);
    giveBack?.();
    streams.delete(job.id);
    streamed.delete(job.id);
  }
}

function receive(job, { event, data }) {
  if (event === "offline") return set(job, { warning: `${data.message} This page keeps trying.` });
  const fields = { warning: null };
  if (event === "queued") fields.position = data.queue_position;
  else if (event === "started") Object.assign(fields, { status: "in_progress", position: null });
  else if (event === "step") Object.assign(fields, stepOf(job, data));
  else if (event === "preview") fields.preview = `data:image/jpeg;base64,${data.jpeg_base64}`;
  else if (event === "image") fields.output = data;
  else Object.assign(fields, endOf(data));
  set(job, fields);
}

function stepOf(job, { step, steps, stage }) {
  const firstStep = job.firstStep ?? (step > 0 ? { step, at: Date.now() } : null);
  return { step, steps, stage, status: "in_progress", position: null, firstStep };
}

/** What the end of a request says. */
function endOf(result) {
  announce({ succeeded: "The image is finished.", failed: "The request failed.", canceled: "" }[result.status] ?? "");
  const effective = result.metadata.effective?.[0];
  return {
    status: result.status,
    position: null,
    eta: null,
    preview: null,
    output: result.outputs?.images[0] ?? null,
    record: effective?.model ? effective : null,
    seconds: result.metadata.inference_time,
    problem: result.error && api.sentenceOf({ detail: result.error }),
  };
}

/** Before the service has measured an edit of the model: the time from the steps that this page has seen. */
function ownEta({ step, steps, firstStep }) {
  if (!firstStep || step <= firstStep.step) return null;
  const perStep = (Date.now() - firstStep.at) / 1000 / (step - firstStep.step);
  return perStep * (steps - step);
}

/** The predicted time, which events do not carry, and everything about a request without events. */
async function look(job) {
  if (document.hidden || hasEnded(job)) return;
  try {
    const status = await api.statusOf(job.id);
    if (hasEnded(job)) return;
    const { steps_done: step, steps, stage } = status.progress;
    const isOver = hasEnded(status);
    if (!streamed.has(job.id)) set(job, isOver ? endOf(await api.resultOf(job.id)) : { status: status.status, step, steps, stage });
    if (!isOver) set(job, { eta: status.eta_s ?? ownEta(job), position: status.queue_position });
  } catch {
    // The stream of events says that the service does not answer.
  }
}
