import { html } from "../vendor/lit-html/lit-html.js";
import * as api from "../api.js";
import { Element, define } from "./element.js";

// Images this far from the window are loaded already.
const MARGIN = "400px";

/** The thumbnail of an image that the trainer made, loaded when it comes into view. */
class SampleImage extends Element {
  static properties = ["job", "file", "label"];
  #url = null;
  #isMissing = false;
  #loaded = null;
  #isVisible = false;

  connected() {
    const watch = new IntersectionObserver(
      (entries) => {
        if (!entries.some((entry) => entry.isIntersecting)) return;
        this.#isVisible = true;
        watch.disconnect();
        this.#load();
      },
      { rootMargin: MARGIN },
    );
    watch.observe(this);
    this.connection.addEventListener("abort", () => watch.disconnect());
  }

  disconnected() {
    if (this.#url) URL.revokeObjectURL(this.#url);
    this.#url = this.#loaded = null;
  }

  rendered() {
    if (this.#isVisible) this.#load();
  }

  template() {
    if (this.#isMissing) return html`<span class="cell-state">being written</span>`;
    return this.#url ? html`<img src=${this.#url} alt=${this.label} />` : html`<span class="cell-state"></span>`;
  }

  async #load() {
    const wanted = `${this.job}/${this.file}`;
    if (wanted === this.#loaded) return;
    this.#loaded = wanted;
    try {
      const blob = await api.sampleImage(this.job, this.file, true, this.connection);
      if (wanted !== this.#loaded) return;
      if (this.#url) URL.revokeObjectURL(this.#url);
      this.#url = URL.createObjectURL(blob);
      this.#isMissing = false;
    } catch {
      this.#isMissing = !this.connection.aborted;
    }
    this.update();
  }
}

define("sample-image", SampleImage);
