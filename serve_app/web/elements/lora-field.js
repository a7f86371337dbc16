import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";
import { live } from "../vendor/lit-html/directives/live.js";
import { announce } from "../announce.js";
import { LOADED, currentModel, loads, loraInfo } from "../catalog.js";
import { CHANGED, change, changeLora, changes, draft } from "../draft.js";
import { CLOSE, PLUS } from "../icons.js";
import { hasTrigger } from "../request.js";
import { Element, define } from "./element.js";
import { describe, titleOf } from "./lora-search.js";
import { numberOf, shown } from "./number-input.js";
import "./lora-search.js";

/** The draft's LoRAs, a slider each, and the search for more. */
class LoraField extends Element {
  #isSearching = false;

  connected() {
    this.listen(changes, CHANGED, () => this.update());
    this.listen(loads, LOADED, () => this.update());
    this.addEventListener("choose-lora", this.#add);
  }

  template() {
    const model = currentModel();
    const most = model?.max_loras ?? 1;
    const { loras } = draft;
    return html`
      <h2 class="label">
        LoRAs <span class="muted small regular">${loras.length ? `${loras.length} of ${most} at most` : `up to ${most}`}</span>
      </h2>
      <ul class="loras">${repeat(loras, (lora) => lora.path, (lora, index) => this.#chosen(lora, index))}</ul>
      ${this.#isSearching || !loras.length
        ? html`<lora-search .model=${model?.id ?? null} .chosen=${loras} .isFull=${loras.length >= most}></lora-search>`
        : html`<button type="button" @click=${this.#search}>${PLUS} ${most > 1 ? "Add or change LoRAs" : "Change the LoRA"}</button>`}
    `;
  }

  #chosen(lora, index) {
    const info = loraInfo(lora.path);
    const word = info?.receipt?.trigger_word;
    const set = (event) => this.#set(lora.path, numberOf(event.target));
    const name = titleOf(lora.path);
    return html`<li class="lora">
      <div class="lora-head">
        <strong title=${lora.path}>${name}</strong>
        <button type="button" class="icon text" aria-label=${`Remove ${name}`} @click=${() => this.#remove(lora.path)}>
          ${CLOSE}
        </button>
      </div>
      <p class="muted small">${info ? describe(info, false) : lora.path}</p>
      <div class="slider">
        <input type="range" min="-2" max="2" step="0.05" aria-label=${`Strength of ${name}`} title="Double-click for 1"
          .value=${live(String(lora.multiplier))} @input=${set} @dblclick=${() => this.#set(lora.path, 1)} />
        <input type="number" min="-2" max="2" step="0.05" aria-label=${`Strength of ${name}, as a number`}
          id=${`strength-${index}`} .value=${shown(`strength-${index}`, lora.multiplier)} @change=${set} @blur=${() => this.update()} />
      </div>
      ${word && !hasTrigger(draft.prompt, word)
        ? html`<button type="button" class="text small" title="Puts [trigger] into the prompt" @click=${insertTrigger}>
            <span>Add its trigger word <q>${word}</q></span>
          </button>`
        : nothing}
    </li>`;
  }

  #set(path, number) {
    if (number !== null) changeLora(path, { multiplier: number });
  }

  #search = async () => {
    this.#isSearching = true;
    this.update();
    await null; // rendered by then
    this.querySelector("input[type=search]")?.focus();
  };

  #remove(path) {
    change({ loras: draft.loras.filter((lora) => lora.path !== path), lorasArePresets: false });
    this.#search();
  }

  #add = (event) => {
    const path = event.detail;
    if (draft.loras.some((lora) => lora.path === path)) return this.#remove(path);
    change({ loras: [...draft.loras, { path, multiplier: 1 }], lorasArePresets: false });
    this.#isSearching = false;
    announce(`${titleOf(path)} is added with strength 1.`);
  };
}

/** `[trigger]`, which the service replaces by the word that the LoRA's file names. */
function insertTrigger() {
  change({ prompt: `[trigger] ${draft.prompt}`.trim() });
}

define("lora-field", LoraField);
