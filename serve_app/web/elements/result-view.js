import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { announce } from "../announce.js";
import * as api from "../api.js";
import { qualityText } from "../quality.js";
import { asPng, useAsInput, useSettings } from "../repeat.js";
import { isEnd } from "../statuses.js";
import { hrefOf } from "../views.js";
import "./copy-code.js";
import { Element, define } from "./element.js";
import { finishedOf } from "./history-card.js";

const POLL = 2000;

/** One request: its images, their settings, and what can be done with them again. */
class ResultView extends Element {
  static properties = ["request", "index"];
  #result = null;
  #of = null;
  #problem = null;
  #isBusy = false;
  #timer = null;

  rendered() {
    if (this.#of === this.request) return;
    this.#of = this.request;
    this.#result = null;
    this.#load();
  }

  disconnected() {
    clearTimeout(this.#timer);
    this.#of = null;
  }

  template() {
    const result = this.#result;
    const record = result?.metadata.effective[this.index];
    const shown = finishedOf(result).find((output) => output.image === this.index);
    return html`<div class="column">
      <p><a href=${hrefOf("history")}>All requests</a></p>
      <h1>${record?.prompt ?? "A request"}</h1>
      ${this.#problem && html`<p class="problem" role="alert">${this.#problem}</p>`}
      ${result ? this.#body(result, record, shown) : nothing}
    </div>`;
  }

  #body(result, record, shown) {
    const images = finishedOf(result);
    const { control_images: inputs = [], purged } = result.metadata;
    return html`
      ${result.error ? html`<p class="problem">${api.sentenceOf({ detail: result.error })}</p>` : nothing}
      ${isEnd(result.status) ? nothing : html`<p class="hint">This request is not finished; this page looks again every two seconds.</p>`}
      ${purged ? html`<p class="hint">The images of this request were deleted.</p>` : nothing}
      ${images.length > 1 ? this.#numbers(images) : nothing}
      <div class="result">
        <div class="result-images">
          ${shown ? html`<img src=${api.imageUrl(shown.url)} alt=${`Result: ${record?.prompt ?? ""}`} />` : nothing}
          ${inputs.length ? html`<h2>Made from</h2>` : nothing}
          <ul class="inputs">${inputs.map((image, number) => html`<li class="input"><img class=${record?.exif === "apply" ? "" : "as-stored"} src=${api.imageUrl(image.url)} alt=${`Control image ${number + 1}`} /></li>`)}</ul>
        </div>
        ${record?.request && shown ? this.#side(record, shown) : nothing}
      </div>
    `;
  }

  #numbers(images) {
    const link = ({ image }) => html`<a class="button" href=${hrefOf("history", this.request, image)}
      aria-current=${image === this.index ? "true" : nothing}>Image ${image + 1}</a>`;
    return html`<nav class="choices" aria-label="Images of this request">${images.map(link)}</nav>`;
  }

  #side(record, shown) {
    const act = (label, action) => html`<button type="button" ?disabled=${this.#isBusy} @click=${() => this.#act(action)}>${label}</button>`;
    return html`<div class="result-side">
      <div class="choices">
        ${act("Use these settings", this.#useSettings)}
        ${act("Use as input", this.#useAsInput)}
        ${act("Download PNG", this.#download)}
      </div>
      ${settings(record, shown)}
      <h2>The same edit as code</h2>
      <copy-code .edit=${this.#edit(record)}></copy-code>
    </div>`;
  }

  #edit(record) {
    const { base } = api;
    const stored = (this.#result.metadata.control_images ?? []).map((image) => image.sha256);
    const images = record.control_images.map(
      ({ sha256 }) => `${base}v1/requests/${this.request}/control-images/${stored.indexOf(sha256)}`,
    );
    return { base, request: record.request, images, needsKey: api.apiKey() !== null };
  }

  #useSettings = async () => {
    const missing = await useSettings(this.request, this.#result, this.index);
    if (missing) throw new Error(missing);
    location.hash = hrefOf("edit");
    announce("The settings are in the form.");
  };

  #useAsInput = async () => {
    await useAsInput(this.request, this.index);
    location.hash = hrefOf("edit");
    announce("The image is the new input.");
  };

  #download = async () => {
    const url = URL.createObjectURL(await asPng(this.request, this.#result, this.index));
    const name = `edit-${this.request.slice(0, 8)}-${this.index}.png`;
    Object.assign(document.createElement("a"), { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  };

  async #act(action) {
    this.#isBusy = true;
    this.update();
    try {
      await action();
      this.#problem = null;
    } catch (error) {
      this.#problem = error.message;
    }
    this.#isBusy = false;
    this.update();
  }

  async #load() {
    const { request } = this;
    try {
      const result = await api.resultOf(request);
      if (request !== this.#of) return;
      this.#result = result;
      this.#problem = null;
      if (!isEnd(result.status)) this.#timer = setTimeout(() => this.#load(), POLL);
    } catch (error) {
      this.#problem = error.message;
      if (error.isTemporary) this.#timer = setTimeout(() => this.#load(), POLL);
    }
    this.update();
  }
}

/** The effective settings of an image, in words. */
function settings(record, shown) {
  const rows = [
    ["Model", record.model],
    ["Prompt", record.prompt],
    ["Negative prompt", record.neg],
    ...record.loras.map((lora) => ["LoRA", `${lora.path}, strength ${lora.network_multiplier}`]),
    ["Size", `${shown.width}x${shown.height}`],
    ["Steps", record.sample_steps],
    ["Guidance", record.guidance_scale],
    ["Seed", record.seed],
    ["Sampler", record.sampler],
    ["Profile", record.profile],
    ["Quality", qualityText(record)],
    ["Format", shown.format],
  ];
  return html`<dl class="settings">
    ${rows.filter(([, value]) => value !== "" && value !== undefined).map(([name, value]) => html`<dt>${name}</dt><dd>${value}</dd>`)}
  </dl>`;
}

define("result-view", ResultView);
