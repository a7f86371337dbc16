import { html, nothing } from "../vendor/lit-html/lit-html.js";
import * as api from "../api.js";
import { isEnd, statusText } from "../statuses.js";
import { hrefOf } from "../views.js";
import "./compare-images.js";
import { Element, define } from "./element.js";

const POLL = 1000;

/** Previews that were made again: each pair of the trainer's image and ours, how close they are, and what that means. */
class PreviewPairs extends Element {
  static properties = ["job", "previews"];
  #found = null;
  #problem = null;
  #warning = null;
  #of = null;
  #chosen = null;
  #theirs = new Map();

  disconnected() {
    this.#forget();
    this.#of = null;
  }

  rendered() {
    const wanted = `${this.job}\n${this.previews}`;
    if (this.#of === wanted) return;
    this.#of = wanted;
    this.#forget();
    this.#follow(wanted);
  }

  template() {
    const found = this.#found;
    return html`<div class="column">
      <p><a href=${hrefOf("training", this.job)}>${this.job}</a></p>
      <h1>${found ? `Step ${found.step}: the trainer's images and ours` : "The trainer's images and ours"}</h1>
      ${this.#problem ? html`<p class="problem" role="alert">${this.#problem}</p>` : nothing}
      ${this.#warning ? html`<p class="hint">${this.#warning}</p>` : nothing}
      ${found ? this.#body(found) : nothing}
    </div>`;
  }

  #body(found) {
    const pair = found.pairs.find((each) => each.sample === this.#chosen) ?? found.pairs.find(isComplete) ?? null;
    const facts = [...new Set(found.pairs.flatMap((each) => each.facts.map((fact) => fact.text)))];
    return html`
      <p class="summary" role="status">${found.summary}</p>
      <div class="choices" role="group" aria-label="Samples">${found.pairs.map((each) => this.#choice(each, each === pair))}</div>
      ${pair ? this.#pair(pair) : nothing}
      ${found.not_redone.map((each) => html`<p class="hint">${api.asSentence(each.problem)}</p>`)}
      ${facts.length ? html`<h2>Good to know</h2><ul>${facts.map((text) => html`<li>${api.asSentence(text)}</li>`)}</ul>` : nothing}
    `;
  }

  #choice(pair, isShown) {
    return html`<button type="button" aria-pressed=${isShown} ?disabled=${!isComplete(pair)} @click=${() => this.#choose(pair.sample)}>
      Sample ${pair.sample}: ${closeness(pair)}
    </button>`;
  }

  #pair(pair) {
    const url = this.#theirs.get(pair.theirs.file);
    if (!url) {
      this.#loadTheirs(pair.theirs.file);
      return html`<p class="muted">Loading the trainer's image…</p>`;
    }
    return html`<compare-images .before=${side(url, "The trainer's")} .after=${side(api.imageUrl(pair.ours.url), "Ours")}></compare-images>
      <p><a href=${hrefOf("history", pair.ours.request_id)}>Settings and code of ours</a></p>`;
  }

  #choose(sample) {
    this.#chosen = sample;
    this.update();
  }

  #forget() {
    for (const url of this.#theirs.values()) if (url) URL.revokeObjectURL(url);
    this.#theirs.clear();
    this.#found = this.#problem = this.#warning = this.#chosen = null;
  }

  async #loadTheirs(file) {
    if (this.#theirs.has(file)) return;
    this.#theirs.set(file, null);
    try {
      const blob = await api.sampleImage(this.job, file, false, this.connection);
      this.#theirs.set(file, URL.createObjectURL(blob));
    } catch (error) {
      if (this.connection.aborted) return;
      this.#problem = error.message;
    }
    this.update();
  }

  async #follow(wanted) {
    const signal = this.connection;
    while (!signal.aborted && wanted === this.#of) {
      try {
        const found = await api.previewsOf(this.job, this.previews);
        if (wanted !== this.#of) return;
        this.#found = found;
        this.#warning = null;
        this.update();
        if (isEnd(found.status)) return;
      } catch (error) {
        if (!error.isTemporary) {
          this.#problem = error.message;
          return this.update();
        }
        this.#warning = `${error.message} This page keeps trying.`;
        this.update();
      }
      await new Promise((resolve) => setTimeout(resolve, POLL));
    }
  }
}

const isComplete = (pair) => Boolean(pair.theirs && pair.ours.url);
const side = (url, label) => ({ url, label });

function closeness(pair) {
  if (pair.ours.status !== "succeeded") return statusText(pair.ours.status);
  if (!pair.comparison) return "not compared";
  return pair.comparison.is_equal ? "equal" : `${pair.comparison.psnr_db} dB`;
}

define("preview-pairs", PreviewPairs);
