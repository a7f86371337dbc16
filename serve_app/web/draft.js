import { keep, recall } from "./state.js";

/**
 * The edit that the user prepares. `null` means: the preset's or the service's own value.
 *
 * @typedef {object} ChosenLora
 * @property {string} path
 * @property {number} multiplier -2 to 2
 *
 * @typedef {object} InputImage
 * @property {string} key names the image on this page
 * @property {string} name of its file
 * @property {string} url of the image in this tab; empty until it is known
 * @property {{id: string, width: number, height: number}|null} upload what the service has stored
 * @property {string|null} problem why it cannot be used
 */
const EMPTY = {
  model: null,
  preset: null,
  /** @type {InputImage[]} */
  images: [],
  prompt: "",
  neg: "",
  triggerWord: "",
  /** @type {ChosenLora[]} */
  loras: [],
  lorasArePresets: false,
  size: "input", // or "default", or "custom" with width and height
  width: null,
  height: null,
  steps: null,
  guidance: null,
  seed: null,
  drawsSeed: false,
  profile: null,
  quality: null,
  outputFormat: null,
  priority: null,
  exif: null,
  // Only earlier edits set these two.
  sampler: null,
  vaeTiling: null,
};

/** Settings for a first impression: about a sixth of the work of the models' own. */
export const QUICK = { steps: 8, guidance: 1 };

export const CHANGED = "changed";
/** Sends CHANGED after each change of the draft. */
export const changes = new EventTarget();

export const draft = { ...EMPTY, ...recall("draft", {}) };

/** Change fields of the draft. */
export function change(fields) {
  Object.assign(draft, fields);
  // Files and their URLs end with the tab.
  const images = draft.images.filter((image) => image.upload).map(({ file, ...image }) => ({ ...image, url: "" }));
  keep("draft", { ...draft, images });
  changes.dispatchEvent(new Event(CHANGED));
}

/** Change one LoRA of the draft. */
export function changeLora(path, fields) {
  const loras = draft.loras.map((lora) => (lora.path === path ? { ...lora, ...fields } : lora));
  change({ loras, lorasArePresets: false });
}

/** The settings of a new draft; the images stay. */
export function clearSettings() {
  change({ ...EMPTY, images: draft.images, model: draft.model });
}
