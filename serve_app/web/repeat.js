import * as api from "./api.js";
import { keptBlob } from "./blobs.js";
import { change, draft } from "./draft.js";
import { parse, stringify } from "./exact-json.js";
import { addImages } from "./inputs.js";
import { textsOf, withTexts } from "./png.js";
import { settingsOf } from "./request.js";

/** Earlier edits, and files that carry the record of one, back into the draft. */

const NO_RECORD = "This file carries no settings. Only PNG files that this service has made do.";
const IMAGE_GONE = "The settings are restored, but the image that it was made from is no longer stored. Choose it again.";

/** The key of a PNG's text that is the effective record of its edit. */
const RECORD = "effective";
const DIGEST = /^[0-9a-f]{64}$/;

/**
 * Put the settings and control images of a finished image into the draft.
 * @param {string} id of its request
 * @param {object} result of the request
 * @param {number} index of the image
 * @returns {Promise<string>} what could not be restored, in a sentence
 */
export async function useSettings(id, result, index) {
  const record = result.metadata.effective[index];
  change({ ...settingsOf(checkedRequest(record)), images: [] });
  const stored = (result.metadata.control_images ?? []).map((image) => image.sha256);
  try {
    const files = await Promise.all(
      record.control_images.map(async ({ sha256 }, number) =>
        asFile(await api.requestImage(id, "control-images", stored.indexOf(sha256)), `input-${number + 1}`),
      ),
    );
    if (files.length) await addImages(files, files.length);
    return "";
  } catch (error) {
    if (error.status !== 404) throw error;
    return IMAGE_GONE;
  }
}

/** Make an image of a request the draft's input. */
export async function useAsInput(id, index) {
  const blob = await api.requestImage(id, "images", index);
  change({ images: [] });
  await addImages([asFile(blob, `edit-${id.slice(0, 8)}-${index}`)], 1);
}

/**
 * Put the settings that a PNG file carries into the draft, with its control images if they are still stored.
 * @param {Blob} file
 * @returns {Promise<string>} what could not be restored, in a sentence
 */
export async function useFile(file) {
  const record = await recordIn(file);
  if (!record) throw new Error(NO_RECORD);
  const areStored = await areImagesStored(record);
  change({ ...settingsOf(record.request), images: [] });
  if (!areStored) return IMAGE_GONE;
  for (const image of record.images) await addStored(image);
  return "";
}

/**
 * The request and the control images in the record that a file carries; null if it carries none.
 * @returns {Promise<{request: object, images: {sha256: string, size: number[]}[]}|null>}
 */
export async function recordIn(file) {
  try {
    const record = parse((await textsOf(file))[RECORD]);
    const images = (record.control_images ?? []).filter(({ sha256, size }) => DIGEST.test(sha256) && size.every(Number.isInteger));
    return { request: checkedRequest(record), images };
  } catch {
    return null;
  }
}

/** Whether the service still has the control images of a record: it explains what it would do with them. */
async function areImagesStored({ request, images }) {
  const names = images.map((image, index) => [images.length > 1 ? `ctrl_img_${index + 1}` : "ctrl_img", `sha256:${image.sha256}`]);
  const prompts = [{ ...request.prompts[0], ...Object.fromEntries(names) }];
  try {
    await api.explain({ ...request, prompts });
    return true;
  } catch (error) {
    if (error.status === 0) throw error;
    return error.code !== "CONTROL_IMAGE_INVALID";
  }
}

/** An image of a request as a PNG file with the record of its edit. The pixels are those of the image's own format. */
export async function asPng(id, result, index) {
  const blob = await api.requestImage(id, "images", index);
  if (blob.type === "image/png") return blob;
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const canvas = Object.assign(document.createElement("canvas"), { width: bitmap.width, height: bitmap.height });
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  const png = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  return withTexts(png, { [RECORD]: inAscii(result.metadata.effective[index]) });
}

/** The request of a record, which may come from a file that anybody has written, with values of the right types. */
function checkedRequest(record) {
  const { request } = record;
  const [prompt] = request.prompts;
  const texts = ["model", "profile", "output_format", "exif", "trigger_word", "preset", "quality"];
  const numbers = ["width", "height", "sample_steps", "guidance_scale", "seed"];
  const large = picked(prompt, ["seed"], "bigint");
  if (typeof prompt.prompt !== "string") throw new Error(NO_RECORD);
  return {
    ...picked(request, texts, "string"),
    ...picked(request, ["vae_tiling"], "boolean"),
    loras: (request.loras ?? [])
      .filter((lora) => typeof lora.path === "string")
      .map((lora) => ({ path: lora.path, ...picked(lora, ["network_multiplier"], "number") })),
    prompts: [{ prompt: prompt.prompt, ...picked(prompt, ["neg", "size", "sampler"], "string"), ...picked(prompt, numbers, "number"), ...large }],
  };
}

function picked(from, names, type) {
  return Object.fromEntries(names.filter((name) => typeof from[name] === type).map((name) => [name, from[name]]));
}

/** Add a control image that the service has; only what this browser has kept can be shown. */
async function addStored({ sha256, size: [width, height] }) {
  const blob = await keptBlob(sha256);
  if (blob) return addImages([asFile(blob, "input")], draft.images.length + 1);
  const upload = { id: sha256, width, height };
  change({ images: [...draft.images, { key: sha256, name: "input", url: "", upload, problem: null, isOnlyStored: true }] });
}

function asFile(blob, name) {
  const suffix = blob.type.split("/")[1] ?? "png";
  return new File([blob], `${name}.${suffix}`, { type: blob.type });
}

function inAscii(value) {
  const escaped = (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return stringify(value).replace(/[\u0080-\uffff]/g, escaped);
}
