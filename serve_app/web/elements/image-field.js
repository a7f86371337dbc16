import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";
import { LOADED, currentModel, loads } from "../catalog.js";
import { CHANGED, changes, draft } from "../draft.js";
import { CLOSE, DOWN, PLUS, UP } from "../icons.js";
import { giveImages } from "../given.js";
import { moveImage, removeImage, tryAgain } from "../inputs.js";
import { Element, define } from "./element.js";

/** The draft's images as a row: each can be moved and removed. */
class ImageField extends Element {
  connected() {
    this.listen(changes, CHANGED, () => this.update());
    this.listen(loads, LOADED, () => this.update());
  }

  template() {
    const most = currentModel()?.max_control_images ?? 1;
    if (!most) return nothing;
    const { images } = draft;
    return html`
      <h2 class="label">${most > 1 ? `Images, up to ${most}` : "Image"}</h2>
      <ul class="inputs">
        ${repeat(images, (image) => image.key, (image, index) => this.#entry(image, index, images.length, most))}
        ${images.length < most || images.length === 0
          ? html`<li><label class="button add-input">${PLUS} ${images.length ? "Add" : "Choose an image"}${chooser(most)}</label></li>`
          : html`<li><label class="button add-input">${most > 1 ? "Replace the last" : "Replace"}${chooser(most)}</label></li>`}
      </ul>
      ${images.filter((image) => image.problem).map((image) => this.#problem(image))}
    `;
  }

  #entry(image, index, count, most) {
    const number = most > 1 ? ` ${index + 1}` : "";
    const sides = image.upload && `${image.upload.width}x${image.upload.height}`;
    const size = sides ? (image.isOnlyStored ? `${sides}, stored by the service` : sides) : image.problem ? "not usable" : "uploading…";
    return html`<li class="input" ?data-unused=${index >= most}>
      ${image.url ? html`<img src=${image.url} alt=${`Input image${number}: ${image.name}`} />` : html`<span class="no-picture" aria-hidden="true">no picture</span>`}
      <span class="input-name" title=${image.name}>${image.name}</span>
      <span class="muted small">${index >= most ? "not used by this model" : size}</span>
      <span class="input-actions">
        ${count > 1
          ? html`
              <button type="button" class="icon text" ?disabled=${index === 0} aria-label=${`Move image${number} up`}
                @click=${() => moveImage(image.key, -1)}>${UP}</button>
              <button type="button" class="icon text" ?disabled=${index === count - 1}
                aria-label=${`Move image${number} down`} @click=${() => moveImage(image.key, 1)}>${DOWN}</button>
            `
          : nothing}
        <button type="button" class="icon text" aria-label=${`Remove image${number}`}
          @click=${() => removeImage(image.key)}>${CLOSE}</button>
      </span>
    </li>`;
  }

  #problem(image) {
    return html`<p class="problem small" role="alert">
      ${image.name}: ${image.problem}
      <button type="button" class="text" @click=${() => tryAgain(image.key)}>Try again</button>
    </p>`;
  }
}

/** A file field inside of its label. */
export function chooser(most, capture = nothing) {
  const choose = (event) => {
    giveImages([...event.target.files], most);
    event.target.value = ""; // the same file may be chosen again
  };
  return html`<input class="visually-hidden" type="file" accept="image/*" capture=${capture} ?multiple=${most > 1} @change=${choose} />`;
}

define("image-field", ImageField);
