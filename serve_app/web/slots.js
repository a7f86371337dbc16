/** A few at a time; the others wait in the order in which they came. */
export class Slots {
  #free;
  #waiting = [];

  constructor(count) {
    this.#free = count;
  }

  /**
   * Wait for a slot.
   * @param {AbortSignal} signal its end ends the waiting
   * @returns {Promise<() => void>} gives the slot back; for a signal that has ended there was none
   */
  async take(signal) {
    if (signal.aborted) return () => {};
    if (this.#free > 0) {
      this.#free--;
      return () => this.#giveBack();
    }
    return new Promise((resolve) => {
      const turn = () => resolve(() => this.#giveBack());
      this.#waiting.push(turn);
      signal.addEventListener("abort", () => {
        if (!this.#waiting.includes(turn)) return;
        this.#waiting = this.#waiting.filter((other) => other !== turn);
        resolve(() => {});
      });
    });
  }

  #giveBack() {
    const next = this.#waiting.shift();
    if (next) next();
    else this.#free++;
  }
}
