import { wholeNumber } from "./exact-json.js";

/** The fields of a new sweep as the body of a request. Pure. */

/**
 * @param {object} base the body of the edit that the sweep varies
 * @param {{loras: string, withoutLora: boolean, multipliers: string, prompts: string, seeds: string, profiles: string[],
 *   qualities: string[], images: string[]}} fields as typed; `images` names control images
 * @throws {Error} with a sentence for the user
 */
export function sweepOf(base, { loras, withoutLora, multipliers, prompts, seeds, profiles = [], qualities = [], images = [] }) {
  const checkpoints = linesOf(loras);
  const first = base.loras?.[0];
  // A sweep puts its LoRAs in the place of the first one.
  if (checkpoints.length && !first) base = { ...base, loras: [{ path: checkpoints[0] }] };
  const axes = {
    checkpoints: withoutLora ? [null, ...checkpoints] : checkpoints,
    multipliers: checkpoints.length ? numbersOf(multipliers, "Strengths") : [],
    prompts: linesOf(prompts),
    seeds: numbersOf(seeds, "Seeds"),
    control_images: images,
    profiles,
    qualities,
  };
  const { priority, ...edit } = base; // always bulk
  return { base: edit, axes: Object.fromEntries(Object.entries(axes).filter(([, values]) => values.length)) };
}

function linesOf(text) {
  return [...new Set(text.split("\n").map((line) => line.trim()).filter(Boolean))];
}

function numbersOf(text, name) {
  const parts = text.split(/[\s,;]+/).filter(Boolean);
  const wrong = parts.find((part) => !Number.isFinite(Number(part)));
  if (wrong) throw new Error(`${name}: ${wrong} is not a number. Separate the numbers by commas.`);
  return [...new Set(parts.map((part) => (/^\d+$/.test(part) ? wholeNumber(part) : Number(part))))];
}
