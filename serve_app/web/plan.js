import * as api from "./api.js";
import { LOADED, currentModel, loads, receiptOf } from "./catalog.js";
import { CHANGED, changes, draft } from "./draft.js";
import { parse, stringify } from "./exact-json.js";
import { withImages } from "./inputs.js";
import { missingIn, requestOf } from "./request.js";

/** What the draft's edit will do, as the service explains it: asked again after each change. */

// The wait after a change of the draft (ms), and before a call that failed is repeated.
const DEBOUNCE = 300;
const RETRY = 4000;

export const PLANNED = "planned";
/** Sends PLANNED when the plan has changed. */
export const plans = new EventTarget();

/**
 * `missing` is what the draft lacks; `explanation` belongs to the draft unless `isLate`.
 * @type {{missing: string[], isLate: boolean, explanation: object|null, problem: string|null}}
 */
export const plan = { missing: [], isLate: true, explanation: null, problem: null };

let timer = null;
let calls = new AbortController();
let asked = "";

/** The body of the request that the draft makes. */
export const currentRequest = () => requestOf(draft, currentModel(), receiptOf);

/** Keep the plan up to date from now on. */
export function startPlanning() {
  changes.addEventListener(CHANGED, plannedAnew);
  loads.addEventListener(LOADED, plannedAnew);
  plannedAnew();
}

function plannedAnew() {
  const model = currentModel();
  const missing = model ? missingIn(draft, model) : [];
  const body = stringify(currentRequest());
  if (body === asked && missing.join() === plan.missing.join()) return;
  asked = body;
  clearTimeout(timer);
  calls.abort();
  if (!model || missing.length) {
    set({ missing, isLate: false, explanation: null, problem: null });
  } else {
    set({ missing, isLate: true });
    timer = setTimeout(ask, DEBOUNCE);
  }
}

async function ask() {
  calls = new AbortController();
  const { signal } = calls;
  try {
    const explanation = await withImages(() => api.explain(parse(asked), signal));
    set({ isLate: false, explanation, problem: null });
  } catch (error) {
    if (signal.aborted) return;
    set({ isLate: false, explanation: null, problem: error.message });
    if (error.isTemporary) timer = setTimeout(ask, RETRY);
  }
}

function set(fields) {
  Object.assign(plan, fields);
  plans.dispatchEvent(new Event(PLANNED));
}
