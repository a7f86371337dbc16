import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";
import * as api from "../api.js";
import { remember } from "../catalog.js";
import { Element, define } from "./element.js";

const PAGE = 30;
const DEBOUNCE = 200;

/** The name of a LoRA for people: that of its file. */
export function titleOf(path) {
  const file = path.split("/").at(-1);
  return file.replace(/\.safetensors$/i, "") || path;
}

/** What a LoRA's file says about itself, in a line, with its trigger word if `withWord`. */
export function describe({ receipt, path }, withWord = true) {
  if (!receipt) return path;
  const ranks = receipt.ranks.length ? `rank ${receipt.ranks.join(", ")}` : null;
  const step = receipt.step === null ? null : `step ${receipt.step.toLocaleString("en")}`;
  const trainer = receipt.trainer && `${receipt.trainer} ${receipt.trainer_version ?? ""}`.trim();
  const word = withWord && receipt.trigger_word && `trigger “${receipt.trigger_word}”`;
  return [receipt.kind, ranks, word, step, trainer].filter(Boolean).join(" · ");
}

/** A search over the LoRA files of the service. Choosing one dispatches `choose-lora` with its path. */
class LoraSearch extends Element {
  static properties = ["model", "chosen", "isFull"];
  #search = "";
  #found = [];
  #next = null;
  #problem = null;
  #isLoaded = false;
  #timer = null;

  connected() {
    this.#load();
  }

  disconnected() {
    clearTimeout(this.#timer);
  }

  template() {
    return html`
      <input type="search" aria-label="Search LoRAs" placeholder="Search by name, trigger word or kind"
        .value=${this.#search} @input=${this.#type} @keydown=${this.#enter} />
      <div class="lora-list" role="group" aria-label="LoRAs that were found" tabindex="-1">
        ${this.#problem && html`<p class="problem small" role="alert">${this.#problem}</p>`}
        ${repeat(this.#fittingFirst(), (lora) => lora.path, (lora) => this.#entry(lora))}
        ${this.#next && html`<button type="button" class="text" @click=${() => this.#load(this.#next)}>Show more</button>`}
        ${this.#isLoaded && !this.#found.length && !this.#problem ? this.#nothing() : nothing}
      </div>
    `;
  }

  #entry(lora) {
    const isChosen = (this.chosen ?? []).some((chosen) => chosen.path === lora.path);
    const problem = this.#problemOf(lora);
    const isOff = !isChosen && (problem || this.isFull);
    const choose = () => {
      if (!isOff) this.dispatchEvent(new CustomEvent("choose-lora", { detail: lora.path, bubbles: true }));
    };
    // Not `disabled`: then a keyboard could not reach the reason.
    return html`<button type="button" class="lora-option" aria-pressed=${isChosen}
      aria-disabled=${isOff ? "true" : "false"} @click=${choose}>
      <span class="lora-title" title=${lora.path}>${titleOf(lora.path)}</span>
      <span class="muted small lora-facts" title=${problem ?? ""}>${problem ?? describe(lora)}</span>
    </button>`;
  }

  #fittingFirst() {
    const fits = (lora) => lora.fits.includes(this.model);
    return [...this.#found.filter(fits), ...this.#found.filter((lora) => !fits(lora))];
  }

  #problemOf(lora) {
    if (lora.fits.includes(this.model)) return null;
    if (lora.problem) return api.asSentence(lora.problem);
    return `Does not fit this model; it fits ${lora.fits.join(", ")}.`;
  }

  #nothing() {
    if (this.#search) return html`<p class="muted small">No LoRA has “${this.#search}” in its name, trigger word or kind.</p>`;
    return html`<p class="muted small">
      The service has no LoRA files. Put .safetensors files into the folder that <code>lora_root</code> of its config names.
    </p>`;
  }

  #type = (event) => {
    this.#search = event.target.value;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#load(), DEBOUNCE);
  };

  /** Enter goes to the first one that fits. */
  #enter = (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    this.querySelector(".lora-option[aria-disabled=false]")?.focus();
  };

  async #load(cursor = "") {
    const search = this.#search;
    try {
      const page = await api.loras(search, cursor, PAGE);
      if (search !== this.#search) return;
      remember(page.loras);
      this.#found = cursor ? [...this.#found, ...page.loras] : page.loras;
      this.#next = page.next_cursor;
      this.#problem = null;
    } catch (error) {
      this.#problem = error.message;
    }
    this.#isLoaded = true;
    this.update();
  }
}

define("lora-search", LoraSearch);
