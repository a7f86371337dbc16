/** Errors of the service as sentences for people. Pure. */

/** What is wrong, in one sentence: the service's own message, or the first fault of a body's shape. */
export function sentenceOf(body, status) {
  const detail = body?.detail;
  if (Array.isArray(detail) && detail.length) return asSentence(`${placeOf(detail[0].loc)}: ${detail[0].msg}`);
  const message = detail?.error?.message ?? body?.error?.message ?? (typeof detail === "string" ? detail : "");
  if (message) return asSentence(message);
  if (status >= 500) return "The service is starting or has a problem. Try again in a moment.";
  return `The service refused this with status ${status} and gave no reason. See its log.`;
}

/** `["body", "prompts", 0, "width"]` as `width`: the page makes one prompt only. */
function placeOf(loc) {
  const names = loc.filter((part) => typeof part === "string" && part !== "body");
  return names.at(-1) ?? "the request";
}

/** A message of the service as a sentence. */
export function asSentence(text) {
  const sentence = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(sentence) ? sentence : `${sentence}.`;
}
