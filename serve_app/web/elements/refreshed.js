import { Element } from "./element.js";

/**
 * A view of something that changes: it asks the service again every `period` ms, unless the tab is hidden.
 *
 * A subclass has `load()`, and a `template()` that shows `found`, what was loaded last (null before the first time), and
 * `problem`, a sentence if the last time failed.
 */
export class Refreshed extends Element {
  period = 5000;
  found = null;
  problem = null;
  #timer = null;

  connected() {
    this.#refresh();
  }

  disconnected() {
    clearTimeout(this.#timer);
  }

  async #refresh() {
    const { connection } = this;
    try {
      if (!document.hidden || !this.found) this.found = await this.load();
      this.problem = null;
    } catch (error) {
      this.problem = error.message;
    }
    if (connection.aborted) return;
    this.#timer = setTimeout(() => this.#refresh(), this.period);
    this.update();
  }
}
