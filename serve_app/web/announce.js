export const ANNOUNCED = "announced";
export const announcements = new EventTarget();

/** Tell screen readers what has changed. */
export function announce(text) {
  announcements.dispatchEvent(new CustomEvent(ANNOUNCED, { detail: text }));
}
