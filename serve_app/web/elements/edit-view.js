import { html } from "../vendor/lit-html/lit-html.js";
import * as api from "../api.js";
import { Element, define } from "./element.js";

class EditView extends Element {
  #models = [];
  #problem = null;

  async connected() {
    try {
      this.#models = (await api.models()).models;
      this.#problem = null;
    } catch (error) {
      this.#problem = error.message;
    }
    this.update();
  }

  template() {
    return html`<div class="column">
      <h1>Edit an image</h1>
      ${this.#problem && html`<p class="problem" role="alert">${this.#problem}</p>`}
      <ul>${this.#models.map((model) => html`<li>${model.id}: ${model.base_model}</li>`)}</ul>
    </div>`;
  }
}

define("edit-view", EditView);
