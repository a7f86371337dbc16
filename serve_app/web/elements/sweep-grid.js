import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { announce } from "../announce.js";
import * as api from "../api.js";
import { useSettings } from "../repeat.js";
import { isEnd, statusText } from "../statuses.js";
import { cellAt, cellsByPlace, layoutOf } from "../sweep-layout.js";
import { hrefOf } from "../views.js";
import "./compare-view.js";
import { Element, define } from "./element.js";
import "./sweep-files.js";

// How often the addresses of images, which expire, are asked for again at most (ms).
const MIN_READ = 30_000;

/** One sweep as a table of its images, which appear as they are finished. Two chosen ones are compared below it. */
class SweepGrid extends Element {
  static properties = ["sweep"];
  #found = null;
  #cells = new Map();
  #chosen = [];
  #problem = null;
  #warning = null;
  #of = null;
  #isUpdating = false;
  #readAt = 0;

  rendered() {
    if (this.#of === this.sweep) return;
    this.#of = this.sweep;
    this.#found = null;
    this.#follow(this.sweep);
  }

  template() {
    return html`<div class="column wide">
      <p><a href=${hrefOf("sweeps")}>Sweeps</a></p>
      ${this.#problem ? html`<p class="problem" role="alert">${this.#problem}</p>` : nothing}
      ${this.#warning ? html`<p class="hint">${this.#warning}</p>` : nothing}
      ${this.#found ? this.#body(this.#found) : nothing}
    </div>`;
  }

  #body(found) {
    const { columns, rows } = layoutOf(found.axes);
    const cells = [...this.#cells.values()];
    const done = cells.filter((cell) => cell.status === "succeeded").length;
    return html`
      <div class="view-head">
        <h1>${found.axes.prompts.length === 1 ? found.axes.prompts[0] : "A sweep"}</h1>
        ${this.#actions(found)}
      </div>
      <sweep-files .sweep=${found.sweep_id}></sweep-files>
      <p class="muted">${done} of ${cells.length} images are finished. Choose one to see it, two to compare them.</p>
      ${isEnd(found.status) ? nothing : html`<progress aria-label="Progress of the sweep" max=${cells.length} .value=${done}></progress>`}
      <div class="sweep-table" tabindex="0" role="region" aria-label="Images of the sweep">
        <table>
          <thead><tr><td></td>${columns.map((column) => html`<th scope="col" title=${column.title ?? ""}>${column.label}</th>`)}</tr></thead>
          <tbody>
            ${rows.map((row) => html`<tr><th scope="row">${row.label}</th>
              ${columns.map((column) => html`<td>${this.#cell(cellAt(this.#cells, row, column), row, column)}</td>`)}
            </tr>`)}
          </tbody>
        </table>
      </div>
      ${this.#shown()}
    `;
  }

  #cell(cell, row, column) {
    if (!cell) return nothing;
    const name = `${row.label}, ${column.label}`;
    if (!cell.url) return html`<span class="cell-state" title=${cell.error ?? ""}>${statusText(cell.status)}</span>`;
    const place = this.#chosen.indexOf(cell.cell);
    return html`<button type="button" class="cell" aria-pressed=${place >= 0} @click=${() => this.#choose(cell.cell)}>
      <img src=${api.imageUrl(cell.url)} alt=${name} loading="lazy" decoding="async" @error=${this.#readAgain} />
    </button>`;
  }

  #actions(found) {
    const act = (text, action) => html`<button type="button" @click=${() => this.#change(action)}>${text}</button>`;
    const isOver = isEnd(found.status);
    const canResume = isOver && found.status !== "succeeded" && !found.purged;
    return html`<div class="choices">
      ${isOver ? nothing : act("Cancel", "cancel")}
      ${canResume ? act("Make the missing images", "resume") : nothing}
    </div>`;
  }

  /** The chosen image, or the two in comparison. */
  #shown() {
    const [first, second] = this.#chosen.map((number) => [...this.#cells.values()].find((cell) => cell.cell === number));
    if (second) return html`<compare-view .path=${[`${first.request_id}:0`, `${second.request_id}:0`]}></compare-view>`;
    if (!first) return nothing;
    return html`<div class="card chosen-cell">
      <img src=${api.imageUrl(first.url)} alt="The chosen image" />
      <div class="choices">
        <button type="button" @click=${() => this.#use(first)}>Use these settings</button>
        <a class="button" href=${hrefOf("history", first.request_id)}>Settings and code</a>
      </div>
    </div>`;
  }

  /** Choosing a third one replaces the one that was chosen last. */
  #choose(number) {
    const others = this.#chosen.filter((other) => other !== number);
    this.#chosen = others.length < this.#chosen.length ? others : [...others.slice(0, 1), number];
    this.update();
  }

  async #use(cell) {
    try {
      const missing = await useSettings(cell.request_id, await api.resultOf(cell.request_id), 0);
      location.hash = hrefOf("edit");
      announce(missing || "The settings are in the form.");
    } catch (error) {
      this.#problem = error.message;
      this.update();
    }
  }

  async #change(action) {
    try {
      await api.changeSweep(this.sweep, action);
      this.#problem = null;
      if (action === "resume") this.#follow(this.sweep);
    } catch (error) {
      this.#problem = error.message;
    }
    this.update();
  }

  async #follow(id) {
    try {
      await this.#read(id);
      if (isEnd(this.#found.status)) return;
      for await (const event of api.sweepEvents(id, this.connection)) {
        if (id !== this.#of) return;
        this.#receive(event);
      }
      // The end says how the sweep ended; cells that were canceled with it are read.
      await this.#read(id);
    } catch (error) {
      this.#problem = error.message;
      this.update();
    }
  }

  async #read(id) {
    this.#readAt = Date.now();
    const found = await api.sweep(id);
    if (id !== this.#of) return;
    this.#found = found;
    this.#cells = cellsByPlace(found.grid);
    this.update();
  }

  #receive({ event, data }) {
    this.#warning = event === "offline" ? `${data.message} This page keeps trying.` : null;
    if (event === "cell") for (const [key, cell] of cellsByPlace([data])) this.#cells.set(key, cell);
    this.#updateSoon();
  }

  /** Once per frame: a stream begins with all cells, and the table has a thousand of them. */
  #updateSoon() {
    if (this.#isUpdating) return;
    this.#isUpdating = true;
    requestAnimationFrame(() => {
      this.#isUpdating = false;
      this.update();
    });
  }

  /** With keys, the addresses of images expire. */
  #readAgain = () => {
    if (Date.now() - this.#readAt > MIN_READ) this.#read(this.sweep).catch(() => {});
  };
}

define("sweep-grid", SweepGrid);
