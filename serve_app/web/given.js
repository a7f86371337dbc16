import { addImages } from "./inputs.js";
import { recordIn } from "./repeat.js";

/** The files that the user gives as images, and the settings that the last one may carry. */

export const OFFERED = "offered";
/** Sends OFFERED when `given.withRecord` changes. */
export const offers = new EventTarget();

/** `withRecord` is the file that was given last, if it is a PNG with the record of an edit. */
export const given = { withRecord: null };

/** Add files that the user has dropped, pasted or chosen, as `addImages` does. */
export async function giveImages(files, most) {
  const adding = addImages(files, most);
  offer(null);
  const [file] = files;
  if (files.length === 1 && file.type === "image/png" && (await recordIn(file))) offer(file);
  await adding;
}

/** Offer the settings of this file; null: no offer. */
export function offer(file) {
  given.withRecord = file;
  offers.dispatchEvent(new Event(OFFERED));
}
