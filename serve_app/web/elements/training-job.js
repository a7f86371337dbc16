import { html, nothing } from "../vendor/lit-html/lit-html.js";
import * as api from "../api.js";
import { hrefOf } from "../views.js";
import { Element, define } from "./element.js";
import "./sample-image.js";

/** One training job: its sample images by step, with a button for each step that makes them again. */
class TrainingJob extends Element {
  static properties = ["name"];
  #job = null;
  #problem = null;
  #of = null;
  #starting = null;

  rendered() {
    if (this.#of === this.name) return;
    this.#of = this.name;
    this.#job = this.#problem = null;
    this.#load(this.name);
  }

  template() {
    return html`<div class="column wide">
      <p><a href=${hrefOf("training")}>Training jobs</a></p>
      <h1>${this.name}</h1>
      ${this.#problem ? html`<p class="problem" role="alert">${this.#problem}</p>` : nothing}
      ${this.#job ? this.#body(this.#job) : nothing}
    </div>`;
  }

  #body(job) {
    const steps = job.sample_steps;
    const numbers = [...new Set(job.sample_images.map((image) => image.sample))].sort((a, b) => a - b);
    const images = new Map(job.sample_images.map((image) => [`${image.step} ${image.sample}`, image]));
    const settings = new Map(job.samples.map((sample) => [sample.sample, sample]));
    return html`
      <p class="muted">${factsOf(job)}</p>
      ${job.problem ? html`<p class="hint">${job.problem}</p>` : nothing}
      ${steps.length ? html`<div class="sweep-table" tabindex="0" role="region" aria-label="Sample images by step">
        <table>
          <thead><tr><th scope="col">Sample</th>${steps.map((step) => html`<th scope="col">${this.#step(job, step)}</th>`)}</tr></thead>
          <tbody>${numbers.map((number) => html`<tr>
            <th scope="row">${rowText(number, settings.get(number))}</th>
            ${steps.map((step) => html`<td>${this.#cell(job, images.get(`${step} ${number}`))}</td>`)}
          </tr>`)}</tbody>
        </table>
      </div>` : html`<p class="muted">The trainer has not made any sample images yet.</p>`}
      ${this.#files(job)}
    `;
  }

  #cell(job, image) {
    if (!image) return html`<span class="cell-state">none</span>`;
    const label = `Sample ${image.sample} at step ${image.step}`;
    return html`<sample-image .job=${job.name} .file=${image.file} .label=${label}></sample-image>`;
  }

  /** A step, and what can be done with it: a checkpoint may be deleted, and its samples stay. */
  #step(job, step) {
    const text = step === 0 ? "Step 0, without the LoRA" : `Step ${step}`;
    const hasFile = step === 0 || weightsOf(job).some((file) => file.step === step && file.fits?.length);
    return html`<span>${text}</span>
      ${hasFile
        ? html`<button type="button" class="small" ?disabled=${this.#starting !== null} aria-label=${`${this.#starting === step ? "Starting…" : "Make again"}: step ${step}`}
            @click=${() => this.#start(step)}>${this.#starting === step ? "Starting…" : "Make again"}</button>`
        : html`<span class="muted small">no checkpoint</span>`}`;
  }

  #files(job) {
    return html`<h2>Checkpoints</h2>
      <ul class="training-files">${weightsOf(job).map((file) => html`<li>
        <code>${file.path}</code>
        <span class="muted">${file.step === null ? "" : `step ${file.step}`}</span>
        ${file.problem ? html`<span class="hint">${file.problem}</span>` : nothing}
      </li>`)}</ul>`;
  }

  async #load(name) {
    try {
      const job = await api.trainingJob(name);
      if (name === this.#of) this.#job = job;
    } catch (error) {
      if (name === this.#of) this.#problem = error.message;
    }
    this.update();
  }

  async #start(step) {
    const name = this.name;
    this.#starting = step;
    this.#problem = null;
    this.update();
    try {
      const { id } = await api.makePreviews(name, step);
      if (this.isConnected && name === this.name) location.hash = hrefOf("training", name, id);
    } catch (error) {
      this.#problem = error.message;
    }
    this.#starting = null;
    this.update();
  }
}

const weightsOf = (job) => (job.final ? [...job.checkpoints, job.final] : job.checkpoints);

function factsOf(job) {
  const model = job.model ?? "a model of another family";
  const word = job.trigger_word ? `trigger word ${job.trigger_word}` : "no trigger word";
  const version = job.trainer_version ? `ai-toolkit ${job.trainer_version} (profile ${job.profile})` : `profile ${job.profile}`;
  return `${model}${job.is_served ? "" : ", which this service does not serve"}; ${word}; ${version}.`;
}

function rowText(number, sample) {
  return html`${number}${sample ? html`<p class="muted small">${sample.prompt}</p>` : nothing}
    ${sample?.problem ? html`<p class="hint small">${sample.problem}</p>` : nothing}`;
}

define("training-job", TrainingJob);
