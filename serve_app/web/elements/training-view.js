import { html, nothing } from "../vendor/lit-html/lit-html.js";
import * as api from "../api.js";
import { hrefOf } from "../views.js";
import { Element, define } from "./element.js";
import "./preview-pairs.js";
import "./training-job.js";

/**
 * The view Training: the jobs that ai-toolkit left below the LoRA root, one of them (`#training/<name>`), or its
 * previews that were made again (`#training/<name>/<id>`).
 */
class TrainingView extends Element {
  static properties = ["path"];
  #jobs = [];
  #next = null;
  #problem = null;
  #isLoaded = false;
  #listed = false;

  /** The list is read each time that it is opened. */
  rendered() {
    const isList = !this.path?.[0];
    if (isList && !this.#listed) this.#load();
    this.#listed = isList;
  }

  template() {
    const [name, previews] = this.path ?? [];
    if (previews) return html`<preview-pairs .job=${name} .previews=${previews}></preview-pairs>`;
    if (name) return html`<training-job .name=${name}></training-job>`;
    return html`<div class="column">
      <h1>Training jobs</h1>
      ${this.#problem ? html`<p class="problem" role="alert">${this.#problem}</p>` : nothing}
      ${this.#isLoaded && !this.#jobs.length ? html`<p class="muted">There are none: set <code>lora_root</code> to the folder
        that ai-toolkit writes its jobs into, or to one above it.</p>` : nothing}
      <ul class="training-jobs">${this.#jobs.map(entry)}</ul>
      ${this.#next ? html`<div><button type="button" @click=${() => this.#load(this.#next)}>Show more</button></div>` : nothing}
    </div>`;
  }

  async #load(cursor = "") {
    try {
      const page = await api.trainingJobs("", cursor);
      this.#jobs = cursor ? [...this.#jobs, ...page.training_jobs] : page.training_jobs;
      this.#next = page.next_cursor;
      this.#problem = null;
      this.#isLoaded = true;
    } catch (error) {
      this.#problem = error.message;
    }
    this.update();
  }
}

function entry(job) {
  const files = job.checkpoints.length + (job.final ? 1 : 0);
  const facts = [
    job.model ?? "a model of another family",
    job.trigger_word && `trigger word ${job.trigger_word}`,
    `${files} ${files === 1 ? "checkpoint" : "checkpoints"}`,
    `samples of ${job.sample_steps.length} ${job.sample_steps.length === 1 ? "step" : "steps"}`,
    job.model && !job.is_served && "not served here",
  ];
  return html`<li class="card">
    <a href=${hrefOf("training", job.name)}>${job.name}</a>
    <span class="muted">${facts.filter(Boolean).join(", ")}</span>
    ${job.problem ? html`<span class="problem">${job.problem}</span>` : nothing}
  </li>`;
}

define("training-view", TrainingView);
