import { html } from "../vendor/lit-html/lit-html.js";
import { imageUrl, resultOf } from "../api.js";
import { differences } from "../record-differences.js";
import { hrefOf } from "../views.js";
import "./compare-images.js";
import { Element, define } from "./element.js";

/**
 * The view that compares two results. Its path names them: `<request id>:<number of the image>` each.
 *
 * @typedef {{image: {url: string, label: string}, record: object, id: string}} Side
 */
class CompareView extends Element {
  static properties = ["path"];
  #sides = null;
  #problem = null;
  #loaded = "";

  rendered() {
    this.#load();
  }

  template() {
    if (this.#problem) return html`<div class="column"><p class="problem" role="alert">${this.#problem}</p></div>`;
    if (!this.#sides) return html`<div class="column"><p class="muted">Loading the two results…</p></div>`;
    const [left, right] = this.#sides;
    const [a, b] = this.path;
    return html`<div class="column">
      <div class="view-head">
        <h1>Compare two results</h1>
        <a class="button" href=${hrefOf("compare", b, a)}>Swap</a>
      </div>
      <compare-images .before=${left.image} .after=${right.image}></compare-images>
      ${this.#table(left, right)}
    </div>`;
  }

  #table(left, right) {
    const rows = differences(left.record, right.record);
    if (!rows.length) {
      return html`<p class="muted">Both were made with the same parameters.</p>`;
    }
    return html`<table class="differences">
      <caption class="label">What differs</caption>
      <thead>
        <tr><th scope="col">Parameter</th><th scope="col">${left.image.label}</th><th scope="col">${right.image.label}</th></tr>
      </thead>
      <tbody>
        ${rows.map(([name, first, second]) => html`<tr><th scope="row">${name}</th><td>${first}</td><td>${second}</td></tr>`)}
      </tbody>
    </table>`;
  }

  async #load() {
    const wanted = (this.path ?? []).join(" ");
    if (wanted === this.#loaded) return;
    this.#loaded = wanted;
    this.#sides = this.#problem = null;
    this.update();
    try {
      if (this.path.length !== 2) throw new Error("Choose two results to compare: in the view History, or below a result.");
      const sides = await Promise.all([loadSide(this.path[0], "Left"), loadSide(this.path[1], "Right")]);
      if (wanted === this.#loaded) this.#sides = sides;
    } catch (error) {
      if (wanted === this.#loaded) this.#problem = error.message;
    }
    this.update();
  }
}

/** @returns {Promise<Side>} */
async function loadSide(name, label) {
  const [id, n = "0"] = name.split(":");
  const result = await resultOf(id);
  const images = result.outputs?.images ?? result.metadata.partial ?? [];
  const output = result.outputs ? images[Number(n)] : images.find((image) => image.image === Number(n));
  if (!output) throw new Error(`The request ${id} has no finished image ${n}. Choose another result.`);
  return { id, image: { url: imageUrl(output.url), label }, record: result.metadata.effective[Number(n)] ?? {} };
}

define("compare-view", CompareView);
