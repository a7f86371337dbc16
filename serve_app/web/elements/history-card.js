import { html, nothing } from "../vendor/lit-html/lit-html.js";
import * as api from "../api.js";
import { statusText } from "../statuses.js";
import { hrefOf } from "../views.js";
import { Element, define } from "./element.js";
import { titleOf } from "./lora-search.js";

// Cards this far below the window are loaded already.
const MARGIN = "400px";

/** One request of the history: its first image, prompt and LoRAs, which are loaded when the card comes into view. */
class HistoryCard extends Element {
  static properties = ["entry"];
  #result = null;
  #loaded = "";

  connected() {
    const watch = new IntersectionObserver(
      (entries) => {
        if (entries.some((entry) => entry.isIntersecting)) this.#load();
      },
      { rootMargin: MARGIN },
    );
    watch.observe(this);
    this.connection.addEventListener("abort", () => watch.disconnect());
  }

  rendered() {
    // A refresh has brought news of the same request.
    if (this.#loaded && this.#loaded !== keyOf(this.entry)) this.#load();
  }

  template() {
    const { entry } = this;
    const record = this.#result?.metadata.effective.find((record) => record.model);
    const [image] = finishedOf(this.#result);
    const name = record?.prompt ?? `Request ${entry.request_id.slice(0, 8)}`;
    return html`<a class="history-card card" href=${hrefOf("history", entry.request_id)} data-status=${entry.status}>
      <span class="thumb">${this.#thumb(image)}</span>
      <span class="history-prompt">${name}</span>
      ${entry.status === "succeeded" ? nothing : html`<span class="small history-state">${statusText(entry.status)}${entry.error ? `: ${entry.error}` : ""}</span>`}
      <span class="muted small">${this.#facts(record)}</span>
    </a>`;
  }

  /** The finished image, or else the one that it is made from. */
  #thumb(image) {
    const shown = image ?? this.#result?.metadata.control_images?.[0];
    if (!shown) return nothing;
    return html`<img src=${api.imageUrl(shown.url)} alt="" loading="lazy" decoding="async" ?data-dimmed=${!image} />`;
  }

  #facts(record) {
    const { entry } = this;
    const parts = [new Date(entry.created_at).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" })];
    if (entry.images > 1) parts.push(`${entry.images} images`);
    if (entry.tenant) parts.push(entry.tenant);
    const loras = record?.loras.map((lora) => titleOf(lora.path)) ?? [];
    return [...parts, ...loras].join(" · ");
  }

  async #load() {
    const { entry } = this;
    if (this.#loaded === keyOf(entry)) return;
    this.#loaded = keyOf(entry);
    try {
      const result = await api.resultOf(entry.request_id);
      // A refresh of the list brings another object for the same request.
      if (keyOf(entry) !== keyOf(this.entry)) return;
      this.#result = result;
      this.update();
    } catch {
      // The request's own view says what is wrong. The next look at the card tries again.
      this.#loaded = "";
    }
  }
}

const keyOf = (entry) => `${entry.request_id} ${entry.status} ${entry.images_done}`;

/** The finished images of a result, each with its number as `image`; also those of a request that failed. */
export function finishedOf(result) {
  if (!result) return [];
  return result.outputs?.images.map((output, image) => ({ ...output, image })) ?? result.metadata.partial ?? [];
}

define("history-card", HistoryCard);
