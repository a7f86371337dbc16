import { noChange } from "../vendor/lit-html/lit-html.js";
import { live } from "../vendor/lit-html/directives/live.js";

/** What a number field shows: `value`, or what the user is typing there. */
export function shown(id, value) {
  return document.activeElement?.id === id ? noChange : live(String(value ?? ""));
}

/** A field's number, held within its bounds; null if it is empty. */
export function numberOf(field) {
  const value = field.valueAsNumber;
  if (Number.isNaN(value)) return null;
  const most = field.max === "" ? Number.MAX_SAFE_INTEGER : Number(field.max);
  return Math.min(most, Math.max(Number(field.min), value));
}
