import { noChange } from "../vendor/lit-html/lit-html.js";
import { live } from "../vendor/lit-html/directives/live.js";
import { wholeNumber } from "../exact-json.js";

/** What a number field shows: `value`, or what the user is typing there. */
export function shown(id, value) {
  return document.activeElement?.id === id ? noChange : live(String(value ?? ""));
}

/** A field's number, held within its bounds; null if it is empty. */
export function numberOf(field) {
  const value = field.valueAsNumber;
  if (Number.isNaN(value)) return null;
  return Math.min(Number(field.max), Math.max(Number(field.min), value));
}

/** The whole number in a field that may be larger than a Number holds exactly, as `numberOf`. */
export function wholeNumberOf(field) {
  const number = numberOf(field);
  if (number === null || Number.isSafeInteger(number)) return number;
  const [value, most] = [/^\d+$/.test(field.value) ? field.value : BigInt(number), field.max].map(wholeNumber);
  return value < most ? value : most;
}
