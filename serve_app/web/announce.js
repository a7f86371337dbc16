export const ANNOUNCED = "announced";
export const announcements = new EventTarget();

/** Tell screen readers what has changed; nothing, if the text is empty. */
export function announce(text) {
  if (text) announcements.dispatchEvent(new CustomEvent(ANNOUNCED, { detail: text }));
}
