import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { etaOf, stateOf } from "../job-texts.js";
import * as jobs from "../jobs.js";
import { Element, define } from "./element.js";

/** How far a request is, and the button that cancels it. `jobState` is a copy of `job`, which changes with it. */
class JobProgress extends Element {
  static properties = ["job", "jobState"];

  template() {
    const { job } = this;
    if (!job) return nothing;
    const isOver = jobs.hasEnded(job);
    const value = job.steps ? job.step : 0;
    return html`<div class="progress">
      <div class="progress-text">
        <strong>${stateOf(job)}</strong>
        <span class="muted">${isOver ? "" : etaOf(job)}</span>
        ${isOver ? nothing : html`<button type="button" @click=${() => jobs.cancel(job)}>Cancel</button>`}
      </div>
      ${isOver
        ? nothing
        : html`<progress aria-label="Progress of the edit" max=${job.steps || 1} .value=${value}></progress>`}
      ${job.problem ? html`<p class="problem" role="alert">${job.problem}</p>` : nothing}
      ${job.warning ? html`<p class="hint" role="status">${job.warning}</p>` : nothing}
    </div>`;
  }
}

define("job-progress", JobProgress);
