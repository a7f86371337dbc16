import * as api from "./api.js";
import { announce } from "./announce.js";
import { keepBlob, keptBlob } from "./blobs.js";
import { change, draft } from "./draft.js";

/** The draft's images: adding, uploading, ordering. */

let count = 0;
const uploading = new Set();
const storedAgain = new Set();

/** Wait until no upload runs. */
export const uploaded = () => Promise.all(uploading);

/**
 * Add files, at most `most` images in all; with `most` 1 the new image replaces the old one.
 * @param {Iterable<File>} files
 */
export async function addImages(files, most) {
  const added = [...files].slice(0, most).map((file) => ({
    key: `new-${Date.now()}-${count++}`,
    name: file.name || "pasted image",
    url: URL.createObjectURL(file),
    upload: null,
    problem: null,
    file,
  }));
  if (!added.length) return;
  change({ images: [...draft.images, ...added].slice(-most) });
  await Promise.all(added.map(({ key, file }) => store(key, file)));
}

function store(key, file) {
  const done = send(key, file).finally(() => uploading.delete(done));
  uploading.add(done);
  return done;
}

async function send(key, file) {
  try {
    const upload = await api.upload(file);
    changeImage(key, { upload });
    await keepBlob(upload.id, file);
  } catch (error) {
    changeImage(key, { problem: error.message });
    announce(error.message);
  }
}

function changeImage(key, fields) {
  change({ images: draft.images.map((image) => (image.key === key ? { ...image, ...fields } : image)) });
}

/** Upload an image again, which failed before. */
export function tryAgain(key) {
  const image = draft.images.find((image) => image.key === key);
  changeImage(key, { problem: null });
  return store(key, image.file);
}

/**
 * Call the service with the draft's images, and once more if it no longer had them: an upload expires, and a service may
 * have been set up anew.
 */
export async function withImages(call) {
  try {
    return await call();
  } catch (error) {
    if (error.code !== "CONTROL_IMAGE_INVALID" || !(await storeAgain())) throw error;
    return call();
  }
}

/** Upload the images again; each only once. Whether there was one to upload. */
async function storeAgain() {
  const images = draft.images.filter(({ key, upload, file }) => upload && file && !storedAgain.has(key));
  for (const { key, file } of images) {
    storedAgain.add(key);
    store(key, file);
  }
  const isWorthIt = uploading.size > 0;
  await uploaded();
  return isWorthIt;
}

export function removeImage(key) {
  change({ images: draft.images.filter((image) => image.key !== key) });
}

/** Move an image by one place: `by` is -1 or 1. */
export function moveImage(key, by) {
  const images = [...draft.images];
  const from = images.findIndex((image) => image.key === key);
  const to = from + by;
  if (to < 0 || to >= images.length) return;
  [images[from], images[to]] = [images[to], images[from]];
  change({ images });
  announce(`Image ${from + 1} is now image ${to + 1}.`);
}

/** Show the draft's images again after a reload: those that this browser has kept, or that it never had. */
export async function restoreImages() {
  for (const { key, upload, url, isOnlyStored } of draft.images) {
    if (url || !upload || isOnlyStored) continue;
    const blob = await keptBlob(upload.id);
    if (blob) changeImage(key, { url: URL.createObjectURL(blob), file: blob });
    else removeImage(key);
  }
}
