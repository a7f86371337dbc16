import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";
import { imageUrl } from "../api.js";
import { CLOSE } from "../icons.js";
import { etaOf, stateOf } from "../job-texts.js";
import * as jobs from "../jobs.js";
import { Element, define } from "./element.js";

/** The requests of this tab. Choosing one dispatches `select-job` with its id. */
class JobList extends Element {
  static properties = ["jobs", "selected"];

  template() {
    return html`
      <h2 class="label">Your edits</h2>
      <ul class="jobs">${repeat(this.jobs, (job) => job.id, (job) => this.#entry(job))}</ul>
    `;
  }

  #entry(job) {
    const isOver = jobs.hasEnded(job);
    const thumb = job.output ? imageUrl(job.output.url) : job.preview;
    const choose = () => this.dispatchEvent(new CustomEvent("select-job", { detail: job.id, bubbles: true }));
    const name = job.prompt || "an edit";
    return html`<li class="job" data-status=${job.status}>
      <button type="button" class="job-choose" aria-pressed=${job.id === this.selected} @click=${choose}>
        <span class="thumb">${thumb ? html`<img src=${thumb} alt="" loading="lazy" />` : nothing}</span>
        <span class="job-prompt">${name}</span>
        <span class="muted small">${stateOf(job)}${!isOver && job.eta ? `, ${etaOf(job)}` : ""}</span>
      </button>
      ${isOver
        ? html`<button type="button" class="icon text job-end" aria-label=${`Take off the list: ${name}`} @click=${() => jobs.dismiss(job)}>${CLOSE}</button>`
        : html`<button type="button" class="icon text job-end" aria-label=${`Cancel: ${name}`} title="Cancel" @click=${() => jobs.cancel(job)}>${CLOSE}</button>`}
      ${isOver || !job.steps ? nothing : html`<progress aria-label=${`Progress: ${name}`} max=${job.steps} .value=${job.step}></progress>`}
    </li>`;
  }
}

define("job-list", JobList);
