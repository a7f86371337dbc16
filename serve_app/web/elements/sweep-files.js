import { html, nothing } from "../vendor/lit-html/lit-html.js";
import * as api from "../api.js";
import { Element, define } from "./element.js";

// As many cells of this size (pixels) as a contact sheet is easy to look at with.
const SHEET = { columns: "checkpoints,multipliers", columns_per_page: 20, rows_per_page: 20, cell: 192, format: "png" };
const FILES = [
  { title: "Contact sheet", path: `sheet?${new URLSearchParams(SHEET)}`, name: "sheet.png" },
  { title: "Table (CSV)", path: "cells.csv", name: "cells.csv" },
  { title: "Archive (ZIP)", path: "archive", name: "images.zip" },
];

/** The files that come out of a sweep. */
class SweepFiles extends Element {
  static properties = ["sweep"];
  #problem = null;
  #loading = null;

  template() {
    return html`
      <div class="choices">${FILES.map((file) => this.#file(file))}</div>
      ${this.#problem ? html`<p class="problem small" role="alert">${this.#problem}</p>` : nothing}
    `;
  }

  /** A link, which a browser saves as it arrives; with a key, which a link cannot send, a button that loads the file. */
  #file(file) {
    const path = `v1/sweeps/${encodeURIComponent(this.sweep)}/${file.path}`;
    const name = `sweep-${this.sweep.slice(0, 8)}-${file.name}`;
    if (!api.apiKey()) return html`<a class="button" href=${new URL(path, api.base).href} download=${name}>${file.title}</a>`;
    return html`<button type="button" ?disabled=${this.#loading !== null} @click=${() => this.#save(path, name, file)}>
      ${this.#loading === file ? "Loading…" : file.title}
    </button>`;
  }

  async #save(path, name, file) {
    this.#loading = file;
    this.#problem = null;
    this.update();
    try {
      const url = URL.createObjectURL(await (await api.call(path)).blob());
      Object.assign(document.createElement("a"), { href: url, download: name }).click();
      setTimeout(() => URL.revokeObjectURL(url), 60_000);
    } catch (error) {
      this.#problem = error.message;
    }
    this.#loading = null;
    this.update();
  }
}

define("sweep-files", SweepFiles);
