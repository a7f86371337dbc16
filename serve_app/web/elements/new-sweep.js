import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { live } from "../vendor/lit-html/directives/live.js";
import * as api from "../api.js";
import { LOADED, PROFILES, catalog, currentModel, loadCatalog, loads } from "../catalog.js";
import { CHANGED, changes, draft } from "../draft.js";
import { currentRequest } from "../plan.js";
import { conflictOf } from "../quality.js";
import { missingIn } from "../request.js";
import { sweepOf } from "../sweep-fields.js";
import { hrefOf } from "../views.js";
import { Element, define } from "./element.js";
import "./lora-search.js";

const DEBOUNCE = 400;

/** The form of a new sweep, which varies the edit of the view Edit. Starting one dispatches `sweep-started` with its id. */
class NewSweep extends Element {
  #fields = {
    loras: draft.loras[0]?.path ?? "",
    withoutLora: false,
    multipliers: "0.5, 0.75, 1",
    prompts: draft.prompt,
    seeds: "",
    profiles: [],
    qualities: [],
    eachImage: false,
  };
  #counted = null;
  #problem = null;
  #isSending = false;
  #timer = null;
  #calls = new AbortController();

  connected() {
    this.listen(loads, LOADED, () => this.#count());
    // An image that was dropped on the view Edit may still be on its way.
    this.listen(changes, CHANGED, () => this.#count());
    this.listen(this, "choose-lora", (event) => this.#toggleLora(event.detail));
    if (catalog.models.length) this.#count();
    else loadCatalog();
  }

  disconnected() {
    clearTimeout(this.#timer);
    this.#calls.abort();
  }

  template() {
    const model = currentModel();
    if (!model) return catalog.problem ? html`<p class="problem" role="alert">${catalog.problem}</p>` : nothing;
    if (this.#missesImage()) {
      return html`<p class="card">A sweep varies the edit that you prepare. <a href=${hrefOf("edit")}>Choose an image first</a>.</p>`;
    }
    const count = this.#counted?.cells;
    return html`<form class="card new-sweep" aria-label="A new sweep" @submit=${this.#start}>
      <p class="muted">One image for each combination of the values below. Everything else is as
        <a href=${hrefOf("edit")}>in the form of the edit</a>.</p>
      <div class="sweep-fields">
        <div>
          ${this.#lines("loras", "LoRAs: one path or pattern per line", 4)}
          <label class="checkbox"><input type="checkbox" .checked=${live(this.#fields.withoutLora)}
            @change=${(event) => this.#set("withoutLora", event.target.checked)} /> also without a LoRA</label>
          <lora-search .model=${model.id} .chosen=${this.#chosen()} .isFull=${false}></lora-search>
        </div>
        <div class="stack">
          <div>${this.#lines("prompts", "Prompts: one per line", 4)}</div>
          <div>${this.#line("multipliers", "Strengths", "0.5, 0.75, 1")}</div>
          <div>${this.#line("seeds", "Seeds", "42, 43")}</div>
          ${this.#choices("profiles", "Profiles", PROFILES, false)}
          ${model.tiers.length ? this.#choices("qualities", "Qualities", model.qualities, true) : nothing}
          ${draft.images.length > 1 ? this.#eachImage() : nothing}
        </div>
      </div>
      ${this.#problem ? html`<p class="problem" role="alert">${this.#problem}</p>` : nothing}
      ${(this.#counted?.notes ?? []).map((note) => html`<p class="hint small">${note}</p>`)}
      <button class="primary" ?disabled=${!count || this.#isSending}>
        ${count ? `Make ${count} ${count === 1 ? "image" : "images"}` : "Make the images"}
      </button>
      ${this.#counted?.predicted_gpu_seconds ? html`<p class="muted small">${timeText(this.#counted.predicted_gpu_seconds)}</p>` : nothing}
    </form>`;
  }

  #lines(name, label, rows) {
    return html`<label for=${`sweep-${name}`}>${label}</label>
      <textarea id=${`sweep-${name}`} rows=${rows} .value=${live(this.#fields[name])}
        @input=${(event) => this.#set(name, event.target.value)}></textarea>`;
  }

  #line(name, label, placeholder) {
    return html`<label for=${`sweep-${name}`}>${label}</label>
      <input id=${`sweep-${name}`} type="text" inputmode="decimal" placeholder=${placeholder} .value=${live(this.#fields[name])}
        @input=${(event) => this.#set(name, event.target.value)} />`;
  }

  #choices(name, title, values, isOpen) {
    const chosen = this.#fields[name];
    const toggle = (value) => this.#set(name, chosen.includes(value) ? chosen.filter((other) => other !== value) : [...chosen, value]);
    return html`<details ?open=${isOpen}>
      <summary class="label">${title}</summary>
      ${values.map((value) => html`<label class="checkbox"><input type="checkbox"
        .checked=${live(chosen.includes(value))} @change=${() => toggle(value)} /> ${value}</label>`)}
    </details>`;
  }

  #eachImage() {
    return html`<label class="checkbox"><input type="checkbox" .checked=${live(this.#fields.eachImage)}
      @change=${(event) => this.#set("eachImage", event.target.checked)} />
      each of the ${draft.images.length} images of the form by itself</label>`;
  }

  #missesImage() {
    return missingIn(draft, currentModel()).some((name) => name === "image" || name === "upload");
  }

  #isIncomplete() {
    const model = currentModel();
    const { loras, withoutLora, prompts } = this.#fields;
    const missesLora = model?.requires_lora && !loras.trim() && !withoutLora;
    return !model || this.#missesImage() || missesLora || !prompts.trim();
  }

  #chosen() {
    return this.#fields.loras.split("\n").map((path) => ({ path: path.trim() }));
  }

  #toggleLora(path) {
    const lines = this.#chosen().map((lora) => lora.path).filter(Boolean);
    const others = lines.filter((line) => line !== path);
    this.#set("loras", (others.length < lines.length ? others : [...lines, path]).join("\n"));
  }

  #set(name, value) {
    this.#fields = { ...this.#fields, [name]: value };
    this.update();
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#count(), DEBOUNCE);
  }

  #body() {
    const stored = draft.images.filter((image) => image.upload);
    const images = this.#fields.eachImage ? stored.map((image) => `upload:${image.upload.id}`) : [];
    return sweepOf(currentRequest(), { ...this.#fields, images });
  }

  /** Let the service check the sweep and say how many images it has. */
  async #count() {
    this.#calls.abort();
    this.#calls = new AbortController();
    const { signal } = this.#calls;
    this.update();
    if (this.#isIncomplete()) {
      this.#counted = this.#problem = null;
      return;
    }
    const conflict = conflictOf(currentModel(), draft, this.#fields.qualities);
    if (conflict) {
      this.#counted = null;
      this.#problem = conflict;
      return;
    }
    try {
      this.#counted = await api.countSweep(this.#body(), signal);
      this.#problem = null;
    } catch (error) {
      if (signal.aborted) return;
      this.#counted = null;
      this.#problem = error.message;
    }
    this.update();
  }

  #start = async (event) => {
    event.preventDefault();
    this.#isSending = true;
    this.update();
    try {
      const { sweep_id: id } = await api.startSweep(this.#body());
      this.dispatchEvent(new CustomEvent("sweep-started", { detail: id, bubbles: true }));
    } catch (error) {
      this.#problem = error.message;
    }
    this.#isSending = false;
    this.update();
  };
}

function timeText(seconds) {
  return seconds < 90 ? `About ${Math.ceil(seconds)} s of GPU time.` : `About ${Math.round(seconds / 60)} min of GPU time.`;
}

define("new-sweep", NewSweep);
