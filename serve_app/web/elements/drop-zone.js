import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { IMAGE } from "../icons.js";
import { chooser } from "./image-field.js";
import { Element, define } from "./element.js";

/** What the stage shows before there is an image: ways to give one. `most` is how many the model takes. */
class DropZone extends Element {
  static properties = ["most"];

  template() {
    return html`
      <div class="drop-zone">
        <span class="drop-icon">${IMAGE}</span>
        <h2>${this.most > 1 ? `Drop up to ${this.most} images here` : "Drop an image here"}</h2>
        <p class="muted">or paste one</p>
        <div class="choices">
          <label class="button">Choose a file${chooser(this.most)}</label>
          <label class="button camera-only">Take a photo${chooser(this.most, "environment")}</label>
        </div>
        <button type="button" class="text" @click=${this.#trySample}>Try the sample photograph</button>
      </div>
    `;
  }

  #trySample = () => this.dispatchEvent(new CustomEvent("try-sample", { bubbles: true }));
}

define("drop-zone", DropZone);
