import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { announce } from "../announce.js";
import { useFile } from "../repeat.js";
import { hrefOf } from "../views.js";
import { Element, define } from "./element.js";

/** A place to drop or choose a PNG of this service, whose settings go into the draft. */
class RecordField extends Element {
  #problem = null;
  #isDraggedOver = false;

  template() {
    return html`
      <div class="record-field" ?data-dragged=${this.#isDraggedOver} @dragover=${this.#dragOver} @dragleave=${this.#leave} @drop=${this.#drop}>
        <p>A PNG that this service has made carries its settings.</p>
        <label class="button">Restore from a PNG
          <input class="visually-hidden" type="file" accept="image/png" @change=${this.#choose} />
        </label>
      </div>
      ${this.#problem ? html`<p class="problem" role="alert">${this.#problem}</p>` : nothing}
    `;
  }

  #choose = (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    if (file) this.#use(file);
  };

  #drop = (event) => {
    event.preventDefault();
    this.#setDragged(false);
    const [file] = event.dataTransfer.files;
    if (file) this.#use(file);
  };

  #dragOver = (event) => {
    event.preventDefault();
    this.#setDragged(true);
  };

  #leave = () => this.#setDragged(false);

  #setDragged(isDragged) {
    this.#isDraggedOver = isDragged;
    this.update();
  }

  async #use(file) {
    try {
      const missing = await useFile(file);
      announce(missing || "The settings are restored.");
      // A sentence about what is missing stays until it is read.
      if (!missing) location.hash = hrefOf("edit");
      this.#problem = missing || null;
    } catch (error) {
      this.#problem = error.message;
    }
    this.update();
  }
}

define("record-field", RecordField);
