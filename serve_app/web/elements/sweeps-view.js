import { html, nothing } from "../vendor/lit-html/lit-html.js";
import * as api from "../api.js";
import { hrefOf } from "../views.js";
import { Element, define } from "./element.js";
import "./new-sweep.js";
import "./sweep-grid.js";

/** The view Sweeps: a form for a new one and those of before, or one of them: `#sweeps/<id>`. */
class SweepsView extends Element {
  static properties = ["path"];
  #sweeps = [];
  #next = null;
  #problem = null;

  #listed = false;

  connected() {
    this.listen(this, "sweep-started", (event) => (location.hash = hrefOf("sweeps", event.detail)));
  }

  /** The list is read each time that it is opened. */
  rendered() {
    const isList = !this.path?.[0];
    if (isList && !this.#listed) this.#load();
    this.#listed = isList;
  }

  template() {
    const [id] = this.path ?? [];
    if (id) return html`<sweep-grid .sweep=${id}></sweep-grid>`;
    return html`<div class="column">
      <h1>Sweeps</h1>
      <new-sweep></new-sweep>
      <h2>Earlier sweeps</h2>
      ${this.#problem ? html`<p class="hint">${this.#problem}</p>` : nothing}
      ${!this.#sweeps.length && !this.#problem ? html`<p class="muted">There are none yet.</p>` : nothing}
      <ul class="sweeps">${this.#sweeps.map((sweep) => entry(sweep))}</ul>
      ${this.#next ? html`<div><button type="button" @click=${() => this.#load(this.#next)}>Show more</button></div>` : nothing}
    </div>`;
  }

  async #load(cursor = "") {
    try {
      const page = await api.sweeps(cursor);
      this.#sweeps = cursor ? [...this.#sweeps, ...page.sweeps] : page.sweeps;
      this.#next = page.next_cursor;
      this.#problem = null;
    } catch (error) {
      this.#problem = error.message;
    }
    this.update();
  }
}

function entry({ sweep_id: id, created_at: created, cells, counts, status, model }) {
  return html`<li class="card">
    <a href=${hrefOf("sweeps", id)}>${new Date(created).toLocaleString("en-GB")}</a>
    <span class="muted">${cells} ${cells === 1 ? "image" : "images"}, ${counts.succeeded} finished, ${status.replace("_", " ")}, ${model}</span>
  </li>`;
}

define("sweeps-view", SweepsView);
