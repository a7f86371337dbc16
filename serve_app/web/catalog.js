import * as api from "./api.js";
import { change, draft } from "./draft.js";

/** What clients can edit with: models, presets, LoRA files. */

export const LOADED = "loaded";
/** Sends LOADED when more is known. */
export const loads = new EventTarget();

// The values of a request's `profile` and `output_format`; `tests/browser` compares them with the service's.
export const PROFILES = ["reference", "trainer", "auto", "trainer-0.6.0", "trainer-0.7.32", "trainer-0.9.0"];
export const OUTPUT_FORMATS = ["jpeg", "png", "webp"];

export const catalog = { models: [], presets: [], problem: null };
const files = new Map();

/** Load models and presets. The draft gets the first model if it has none that is served. */
export async function loadCatalog() {
  try {
    const [models, presets] = await Promise.all([api.models(), api.presets()]);
    Object.assign(catalog, { models: models.models, presets: presets.presets, problem: null });
  } catch (error) {
    catalog.problem = error.message;
  }
  const isServed = catalog.models.some((model) => model.id === draft.model);
  const hasPreset = !draft.preset || catalog.presets.some((preset) => preset.name === draft.preset);
  if (catalog.models.length && !(isServed && hasPreset)) change({ model: catalog.models[0].id, preset: null });
  loads.dispatchEvent(new Event(LOADED));
}

/** The draft's model as `/v1/models` describes it; null before it is loaded. */
export function currentModel() {
  return catalog.models.find((model) => model.id === draft.model) ?? null;
}

/** Keep what a page of the LoRA catalog says. */
export function remember(loras) {
  for (const lora of loras) files.set(lora.path, lora);
}

/** What is known of a LoRA's file; null if nothing is. Asks for it once. */
export function loraInfo(path) {
  if (!files.has(path) && !path.includes("://")) {
    files.set(path, null);
    askFor(path);
  }
  return files.get(path) ?? null;
}

/** The receipt of a LoRA's file, null if it has none or is not known yet. */
export const receiptOf = (path) => files.get(path)?.receipt ?? null;

async function askFor(path) {
  try {
    const encoded = path.split("/").map(encodeURIComponent).join("/");
    files.set(path, await api.callJson(`v1/loras/${encoded}`));
    loads.dispatchEvent(new Event(LOADED));
  } catch {
    // An explanation of the edit says what is wrong with the file.
  }
}
