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
        <h2 class="mouse-only">${this.most > 1 ? `Drop up to ${this.most} images here` : "Drop an image here"}</h2>
        <h2 class="touch-only">${this.most > 1 ? `Choose up to ${this.most} images` : "Choose an image"}</h2>
        <p class="muted mouse-only">or paste one, or</p>
        <div class="choices">
          <label class="button">Choose a file${chooser(this.most)}</label>
          <label class="button touch-only">Take a photo${chooser(this.most, "environment")}</label>
        </div>
        <p class="muted">Then write what is to change, choose a LoRA, and see it before and after.</p>
        <button type="button" class="text" @click=${this.#trySample}>Try the sample photograph</button>
      </div>
    `;
  }

  #trySample = () => this.dispatchEvent(new CustomEvent("try-sample", { bubbles: true }));
}

define("drop-zone", DropZone);
