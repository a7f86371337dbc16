/**
 * JSON whose whole numbers keep all their digits: a seed may have 19. Those that no Number holds exactly are BigInts.
 *
 * It needs JSON.rawJSON: Chrome and Edge 114, Firefox 135, Safari 18.4. In others, large numbers lose their last digits.
 */

const keepsDigits = typeof JSON.rawJSON === "function";
const DIGITS = /^-?\d+$/;

/** The value of a JSON text. */
export function parse(text) {
  return keepsDigits ? JSON.parse(text, withDigits) : JSON.parse(text);
}

/** A value as JSON. */
export function stringify(value, space) {
  return keepsDigits ? JSON.stringify(value, asNumber, space) : JSON.stringify(value, null, space);
}

/** The whole number that a text of digits, or a BigInt, means; the largest one that this browser keeps exactly if it is larger. */
export function wholeNumber(text) {
  const value = Number(text);
  if (Number.isSafeInteger(value)) return value;
  return keepsDigits ? BigInt(text) : Math.sign(value) * Number.MAX_SAFE_INTEGER;
}

function withDigits(_, value, { source }) {
  return Number.isInteger(value) && !Number.isSafeInteger(value) && DIGITS.test(source) ? BigInt(source) : value;
}

function asNumber(_, value) {
  return typeof value === "bigint" ? JSON.rawJSON(String(value)) : value;
}
