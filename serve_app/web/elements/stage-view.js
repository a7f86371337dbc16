import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { imageUrl } from "../api.js";
import { inputView } from "../input-views.js";
import * as jobs from "../jobs.js";
import { hrefOf } from "../views.js";
import "./compare-images.js";
import "./drop-zone.js";
import { Element, define } from "./element.js";
import "./job-progress.js";

/**
 * The large image: a place to drop one, the draft's image, or the selected request: its progress, then input and result
 * to compare. `jobState` is a copy of `job`, which changes with it.
 */
class StageView extends Element {
  static properties = ["job", "jobState", "images", "most"];
  #before = null;
  #beforeOf = null;

  template() {
    const { job } = this;
    if (!job) return this.#draft();
    this.#findBefore(job);
    if (job.status === "succeeded" && job.output) return this.#result(job);
    return html`
      <div class="stage-box">${this.#running(job)}</div>
      <job-progress .job=${job} .jobState=${this.jobState}></job-progress>
    `;
  }

  #draft() {
    const images = (this.images ?? []).filter((image) => image.url || image.isOnlyStored).slice(0, Math.max(1, this.most));
    if (!this.most) return html`<div class="stage-box empty"><p class="muted">The image will be here.</p></div>`;
    if (!images.length) return html`<drop-zone .most=${this.most}></drop-zone>`;
    return html`<div class="stage-box" data-count=${images.length}>
      ${images.map((image) => image.url
        ? html`<img class="as-stored" src=${image.url} alt=${`Input: ${image.name}`} />`
        : html`<p class="muted">The service has the image of this edit (${image.upload.width}x${image.upload.height}) and will use it. This browser has no copy to show.</p>`)}
    </div>`;
  }

  #running(job) {
    const isMade = job.status === "in_progress";
    if (job.preview) return html`<img class="preview" src=${job.preview} alt="Preview of the image that is being made" />`;
    if (!this.#before) return html`<p class="muted">${isMade ? "The image is being made." : ""}</p>`;
    return html`<img class=${job.ignoresExif ? "as-stored" : ""} ?data-dimmed=${!jobs.hasEnded(job)} src=${this.#before} alt="Input" />`;
  }

  #result(job) {
    const after = { url: imageUrl(job.output.url), label: "Result", width: job.output.width, height: job.output.height };
    if (!this.#before) {
      return html`<div class="stage-box"><img src=${after.url} alt=${`Result: ${job.prompt}`} /></div>${this.#foot(job)}`;
    }
    const before = { url: this.#before, label: "Input", asStored: job.ignoresExif };
    return html`<compare-images .before=${before} .after=${after}></compare-images>${this.#foot(job)}`;
  }

  #foot(job) {
    const others = jobs.jobs.filter((other) => other !== job && other.output);
    const open = (event) => {
      if (event.target.value) location.hash = hrefOf("compare", event.target.value, `${job.id}:0`);
    };
    const seconds = job.seconds ? ` · ${job.seconds.toFixed(1)} s` : "";
    return html`<div class="stage-foot">
      <p class="muted small">${job.output.width}x${job.output.height} · seed ${job.output.seed}${seconds}</p>
      ${others.length
        ? html`<select aria-label="Compare with another result" @change=${open}>
            <option value="">Compare with …</option>
            ${others.map((other) => html`<option value=${`${other.id}:0`}>${other.prompt} (seed ${other.output.seed})</option>`)}
          </select>`
        : nothing}
      <a class="button" href=${hrefOf("history", job.id)}>Settings and code</a>
      <a class="button" href=${imageUrl(job.output.url)} download=${`edit-${job.id.slice(0, 8)}.${job.output.format}`}>Download ${job.output.format.toUpperCase()}</a>
    </div>`;
  }

  async #findBefore(job) {
    if (this.#beforeOf === job.id) return;
    this.#beforeOf = job.id;
    this.#before = null;
    if (!job.inputs.length) return;
    const url = await inputView(job.id, 0, job.inputs[0].id);
    if (this.#beforeOf !== job.id) return;
    this.#before = url;
    this.update();
  }
}

define("stage-view", StageView);
