/**
 * Pointers and the wheel on a box of images: dragging moves the split or the images, two fingers and Ctrl with the wheel
 * zoom. All positions are shares of the box.
 */
export class Gestures {
  #actions;
  #pointers = new Map();
  #movesSplit = false;

  /** @param {{split: (x: number) => void, pan: (dx: number, dy: number) => void, zoom: (factor: number, at: object) => void}} actions */
  constructor(actions) {
    this.#actions = actions;
  }

  /** `movesSplit`: dragging anywhere moves the split; otherwise only its handle does. */
  down = (event, movesSplit) => {
    if (event.button !== 0) return;
    const box = event.currentTarget;
    this.#pointers.set(event.pointerId, placeOf(event));
    this.#movesSplit = movesSplit || event.target.matches(".split-handle");
    box.setPointerCapture(event.pointerId);
    if (this.#movesSplit && this.#pointers.size === 1) {
      this.#actions.split(placeOf(event).x);
      box.querySelector(".split-handle")?.focus({ preventScroll: true });
      event.preventDefault();
    }
  };

  move = (event) => {
    const last = this.#pointers.get(event.pointerId);
    if (!last) return;
    const now = placeOf(event);
    if (this.#pointers.size === 2) this.#pinch(event.pointerId, last, now);
    else if (this.#movesSplit) this.#actions.split(now.x);
    else this.#actions.pan(now.x - last.x, now.y - last.y);
    this.#pointers.set(event.pointerId, now);
  };

  up = (event) => {
    this.#pointers.delete(event.pointerId);
  };

  /** Without Ctrl the wheel scrolls the page. */
  wheel = (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    this.#actions.zoom(Math.exp(-event.deltaY / 300), placeOf(event));
  };

  #pinch(id, last, now) {
    const other = [...this.#pointers].find(([key]) => key !== id)[1];
    const factor = distance(now, other) / (distance(last, other) || 1);
    this.#actions.zoom(factor, { x: (now.x + other.x) / 2, y: (now.y + other.y) / 2 });
  }
}

function placeOf(event) {
  const box = event.currentTarget.getBoundingClientRect();
  return { x: (event.clientX - box.x) / box.width, y: (event.clientY - box.y) / box.height };
}

const distance = (a, b) => Math.hypot(a.x - b.x, a.y - b.y);
