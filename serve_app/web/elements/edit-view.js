import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { live } from "../vendor/lit-html/directives/live.js";
import { announce } from "../announce.js";
import { LOADED, catalog, currentModel, loadCatalog, loads } from "../catalog.js";
import { CHANGED, QUICK, change, changes, draft } from "../draft.js";
import { OFFERED, giveImages, given, offer, offers } from "../given.js";
import { restoreImages, uploaded, withImages } from "../inputs.js";
import * as jobs from "../jobs.js";
import { PLANNED, currentRequest, plan, plans, startPlanning } from "../plan.js";
import { tierOf } from "../quality.js";
import { useFile } from "../repeat.js";
import { missingIn, usedImages } from "../request.js";
import { useSample } from "../sample.js";
import { keep, recall } from "../state.js";
import { Element, define } from "./element.js";
import "./image-field.js";
import "./job-list.js";
import "./lora-field.js";
import "./model-field.js";
import "./plan-summary.js";
import "./settings-field.js";
import "./stage-view.js";

// What is said if a part of the edit is missing, and where it belongs.
const NEEDS = {
  image: ["Choose an image first.", ".stage"],
  upload: ["This image cannot be used. Remove it and choose another one.", "image-field"],
  prompt: ["Write into the prompt what is to change.", "#prompt"],
  lora: ["Choose a LoRA; this service makes no edits without one.", "lora-search"],
};

class Incomplete extends Error {
  constructor(missing) {
    super(NEEDS[missing][0]);
    this.missing = missing;
    this.selector = NEEDS[missing][1];
  }
}

/** The view Edit: settings at the left, the images at the right, the requests of this tab below them. */
class EditView extends Element {
  #selected = recall("selected", null);
  #isSending = false;
  #problem = null;
  #isDraggedOver = false;
  #imageKeys = draft.images.map((image) => image.key).join();

  connected() {
    this.listen(changes, CHANGED, () => this.#changed());
    this.listen(loads, LOADED, () => this.update());
    this.listen(jobs.changes, jobs.CHANGED, () => this.update());
    this.listen(offers, OFFERED, () => this.update());
    this.listen(plans, PLANNED, () => this.update());
    this.listen(document, "paste", this.#paste);
    this.listen(this, "try-sample", () => this.#trySample());
    // Choosing the selected one again goes back to the draft's image.
    this.listen(this, "select-job", ({ detail: id }) => this.#select(id === this.#selected ? null : id));
    if (!catalog.models.length) loadCatalog();
    startPlanning();
    restoreImages();
    jobs.resume();
  }

  template() {
    if (catalog.problem) return this.#failed();
    const selected = jobs.findJob(this.#selected);
    return html`
      <div class="edit" ?data-dragged=${this.#isDraggedOver} @dragover=${this.#dragOver} @dragleave=${this.#dragLeave} @drop=${this.#drop}>
        <form class="panel" aria-label="The edit" novalidate @submit=${this.#send}>
          <div class="panel-fields">
            <h1 class="visually-hidden">Edit an image</h1>
            <model-field></model-field>
            <image-field></image-field>
            ${given.withRecord ? this.#offered(given.withRecord) : nothing}
            <div>
              <label for="prompt">Prompt</label>
              <textarea id="prompt" rows="3" placeholder="What is to change, for example: make it night"
                .value=${live(draft.prompt)} @input=${(event) => change({ prompt: event.target.value })}
                @keydown=${this.#sendByKey}></textarea>
            </div>
            <lora-field></lora-field>
            <settings-field></settings-field>
          </div>
          <div class="panel-foot">
            <plan-summary></plan-summary>
            ${this.#problem && this.#problem.message !== plan.problem ? html`<p class="problem small" role="alert">${this.#problem.message}</p>` : nothing}
            ${draft.preset ? nothing : this.#quickField()}
            <button class="primary" ?disabled=${this.#isSending || !catalog.models.length}>
              ${this.#isSending ? "Sending…" : "Make the edit"}
            </button>
          </div>
        </form>
        <section class="stage" aria-label="The image">
          <stage-view .job=${selected} .jobState=${selected && { ...selected }} .images=${draft.images}
            .most=${currentModel()?.max_control_images ?? 1}></stage-view>
          ${jobs.jobs.length ? html`<job-list .jobs=${[...jobs.jobs]} .selected=${this.#selected}></job-list>` : nothing}
        </section>
      </div>
    `;
  }

  /** A PNG that this service has made is an image like others, and carries the settings of its edit. */
  #offered(file) {
    return html`<div class="card offer" role="status">
      <p>${file.name} carries the settings of the edit that made it.</p>
      <div class="choices">
        <button type="button" @click=${() => this.#restore(file)}>Use these settings</button>
        <button type="button" class="text" @click=${() => offer(null)}>Only the image</button>
      </div>
    </div>`;
  }

  async #restore(file) {
    offer(null);
    try {
      const missing = await useFile(file);
      announce(missing || "The settings are restored.");
      this.#problem = missing ? new Error(missing) : null;
    } catch (error) {
      this.#problem = error;
    }
    this.update();
  }

  #quickField() {
    const tier = tierOf(currentModel(), draft.quality);
    // The tier has its own.
    if (tier?.sample_steps != null || tier?.guidance_scale != null) return nothing;
    const isQuick = draft.steps === QUICK.steps && draft.guidance === QUICK.guidance;
    const set = (event) => change(event.target.checked ? QUICK : { steps: null, guidance: null });
    return html`<label class="checkbox small">
      <input type="checkbox" .checked=${live(isQuick)} @change=${set} />
      <span>Quick look: ${QUICK.steps} steps, no guidance</span>
    </label>`;
  }

  #failed() {
    const again = () => loadCatalog();
    return html`<div class="column">
      <p class="problem" role="alert">${catalog.problem}</p>
      <div><button type="button" @click=${again}>Try again</button></div>
    </div>`;
  }

  #changed() {
    const isStillMissing = missingIn(draft, currentModel()).includes(this.#problem?.missing);
    if (!isStillMissing) this.#problem = null;
    const keys = draft.images.map((image) => image.key).join();
    // A new image is shown, and no longer the result of another one.
    if (keys !== this.#imageKeys && draft.images.length) this.#select(null);
    if (given.withRecord && !draft.images.some((image) => image.file === given.withRecord)) offer(null);
    this.#imageKeys = keys;
    this.update();
  }

  #select(id) {
    this.#selected = id;
    keep("selected", id);
    this.update();
  }

  #send = async (event) => {
    event.preventDefault();
    const model = currentModel();
    this.#isSending = true;
    this.#problem = null;
    this.update();
    try {
      if (missingIn(draft, model)[0] === "upload") await uploaded();
      const [missing] = missingIn(draft, model);
      if (missing) throw new Incomplete(missing);
      const inputs = usedImages(draft, model).map((image) => image.upload);
      const job = await withImages(() => jobs.start(currentRequest(), inputs));
      this.#select(job.id);
      this.querySelector(".stage").scrollIntoView({ block: "nearest" });
    } catch (error) {
      this.#problem = error;
      if (error.missing) this.#goTo(error.selector);
    }
    this.#isSending = false;
    this.update();
  };

  #goTo(selector) {
    const place = this.querySelector(selector);
    place?.scrollIntoView({ block: "nearest" });
    (place?.matches("textarea") ? place : place?.querySelector("input, button"))?.focus({ preventScroll: true });
  }

  #sendByKey = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.target.form.requestSubmit();
  };

  async #trySample() {
    try {
      await useSample();
      this.querySelector("button.primary")?.focus({ preventScroll: true });
      announce("The sample photograph is ready. Press Make the edit.");
    } catch (error) {
      this.#problem = error;
      this.update();
    }
  }

  #give(files) {
    const images = [...files].filter((file) => file.type.startsWith("image/") || !file.type);
    if (!images.length) {
      this.#problem = new Error("This is not an image. Give a JPEG, PNG or WebP file.");
      return this.update();
    }
    giveImages(images, currentModel()?.max_control_images ?? 1);
  }

  #paste = (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    this.#give(files);
  };

  #dragOver = (event) => {
    event.preventDefault();
    this.#setDragged(true);
  };

  #dragLeave = (event) => {
    if (!this.contains(event.relatedTarget)) this.#setDragged(false);
  };

  #drop = (event) => {
    event.preventDefault();
    this.#setDragged(false);
    this.#give(event.dataTransfer.files);
  };

  #setDragged(isDragged) {
    if (this.#isDraggedOver === isDragged) return;
    this.#isDraggedOver = isDragged;
    this.update();
  }
}

define("edit-view", EditView);
